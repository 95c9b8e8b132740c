"""The trainings of a torch process: where they run, who teaches, and how fast they go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from edgeopt.passes.distill.compute import (
    CPU,
    ComputeDevice,
    choose_device,
    choose_precision,
    move_tensors,
    processor_multiplies_bfloat16,
    with_device,
)
from edgeopt.passes.distill.ranks import connect_ranks
from edgeopt.passes.distill.teacher import ModuleTeacher, Teacher, TeacherOutputs, to_channels_last
from edgeopt.passes.distill.train import Distillation, TrainingResult
from edgeopt.passes.network import Network
from edgeopt.passes.prune.lasso import GroupLasso
from edgeopt.passes.reconstruct.fit import affordable_samples
from edgeopt.passes.safe_gradients import take_stride_out
from edgeopt.passes.sparsify import SparsitySchedule
from edgeopt.passes.tracing.trace import FIXED_BATCH_NOTE
from edgeopt.pipeline.onnx_teacher import OnnxTeacher
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.recipe import Distill, MultiplyPrecision, Prune, Student
from edgeopt.task import Batch, CheckedTask
from edgeopt.task.modules import widen_inputs
from edgeopt.task.random_states import seed_generators

_WARMUP_STEPS = 2


class Trainer:
    """Trains networks of one task.

    Args:
        task: The user's task.
        answer: Sends the progress of trainings to the parent.
    """

    def __init__(self, task: CheckedTask, answer: Callable[[protocol.TorchAnswer], None]) -> None:
        self.task = task
        self.answer = answer
        self.teachers: dict[torch.device, ModuleTeacher] = {}

    def distill(
        self,
        network: Network,
        fake_quantized: fx.GraphModule | None,
        step: Distill,
        job: protocol.TrainJob,
        index: int,
        sparsity: SparsitySchedule | None,
        original: Network,
    ) -> TrainingResult:
        """Train a network in place, taught by the original or by the task's teacher.

        ``fake_quantized``, if given, runs instead of the network's own modules, over the same tensors. ``index`` is the
        step's place in the job, and ``sparsity`` says which weights are zero.
        """
        folder, compute = Path(job.teacher), self.compute_device(step, job.precision)
        stream = TeacherOutputs(folder, self.task, self.teacher(folder, original), epochs=step.epochs, seed=job.seed)
        stream.epochs = step.epochs_for(stream.plan.batches)
        knows_something = not isinstance(job.steps[0], Student)
        step = msgspec.structs.replace(step, epochs=stream.epochs, find_rate=step.find_rate and knows_something)
        if sparsity is not None:
            sparsity.set_epochs(step.epochs)
        with connect_ranks(job.rank, job.ranks, Path(f"{job.meeting}-{index}"), compute.device) as ranks:
            stream.ranks = ranks
            result = Distillation(
                fake_quantized or network.train_module,
                fake_quantized or network.eval_module,
                self.task,
                step,
                stream,
                sparsity=sparsity,
                lasso=GroupLasso(network, step.group_lasso) if step.group_lasso > 0 else None,
                checkpoint=checkpoint_path(job, index),
                progress=lambda epoch, epochs, score: self.answer(
                    protocol.EpochProgress(epoch=epoch, epochs=epochs, score=score)
                ),
                compute=compute,
                careful=job.careful,
                ranks=ranks,
                floor=job.floor,
                is_over=job.is_over,
                may_be_cut_off=index == len(job.steps) - 1,
                may_keep_start=any(isinstance(one, Prune) and one.fitted_samples > 0 for one in job.steps[:index]),
            ).run()
        where = () if compute == CPU else (f"trained on {compute}",)
        if job.ranks > 1:
            where = (f"trained by {job.ranks} processes together, on {compute.device.type}",)
        if compute.device.type == "cuda":
            torch.cuda.empty_cache()  # what is measured next finds the memory free
        return msgspec.structs.replace(result, notes=(*where, *early_end_notes(result, step.epochs), *result.notes))

    def compute_device(self, step: Distill | None = None, tried: MultiplyPrecision | None = None) -> ComputeDevice:
        """Return where this process trains; several processes share out the CUDA devices.

        Args:
            step: Its precision counts, if it has one.
            tried: The precision that a trial on the processor found best.
        """
        device = choose_device(self.task.training.device, int(os.environ.get(protocol.WORKER_VARIABLE, "0")))
        found = tried if tried and device.type == "cpu" else "auto"
        return ComputeDevice(device, choose_precision(step.precision or found if step else "auto", device))

    def teacher(self, folder: Path, original: Network) -> Teacher:
        """Return the task's teacher, or the original on the device that trains."""
        if self.task.teacher:
            return OnnxTeacher(self.task, folder)
        device = self.compute_device().device
        if device not in self.teachers:
            module = original.copy().eval_module
            move_tensors(module, device)
            self.teachers[device] = ModuleTeacher(with_device(module, device), ComputeDevice(device))
        return self.teachers[device]

    def measure_speed(self, network: Network, batch: Batch, job: protocol.SpeedJob) -> protocol.SpeedDone:
        """Measure how fast a network trains on the processor, on the same batch in every step, which changes nothing.

        In another precision than float32, its gradient is compared too.
        """
        for parameter in network.parameters().values():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        module, compute = take_stride_out(network.train_module), ComputeDevice(CPU.device, job.precision)
        inputs, targets = to_channels_last(batch[0]), batch[1]

        def gradient(compute: ComputeDevice) -> Tensor:
            seed_generators(0)  # the same dropout in every precision
            with compute.autocast():
                outputs = module(*inputs)
            loss = self.task.loss(pytree.tree_map_only(Tensor, widen_inputs, outputs), targets)
            parameters = list(module.parameters())
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            return torch.cat([value.flatten() for value in gradients if value is not None])

        steps = 0
        begin = time.perf_counter()
        while steps <= _WARMUP_STEPS or time.perf_counter() - begin < job.seconds:
            if steps == _WARMUP_STEPS:
                begin = time.perf_counter()
            found = gradient(compute)
            steps += 1
        speed = (steps - _WARMUP_STEPS) / (time.perf_counter() - begin)
        cosine = 1.0 if compute == CPU else float(torch.cosine_similarity(found, gradient(CPU), 0))
        return protocol.SpeedDone(
            steps_per_second=speed, gradient_cosine=cosine, multiplies_bfloat16=processor_multiplies_bfloat16()
        )


def early_end_notes(result: TrainingResult, epochs: int) -> tuple[str, ...]:
    """Say why a training did not do all its epochs, if it did not."""
    done = f"{len(result.epochs)} of {epochs} epochs"
    if result.stopped:
        return (f"trained for {done}: it could not reach the limit",)
    if result.ended_after is not None:
        return (f"the training was cut off after {done}, because the time was over",)
    return ()


def first_inputs(task: CheckedTask, network: Network, most: int) -> list[tuple[Tensor, ...]]:
    """Return the inputs of the first batches that train, as many samples as may be in memory at once.

    Args:
        task: Of the network.
        network: With its example inputs; if its batch is fixed, batches stay whole.
        most: The largest number of samples.
    """
    is_fixed = any(note.startswith(FIXED_BATCH_NOTE) for note in network.notes)
    found: list[tuple[Tensor, ...]] = []
    left = most
    for inputs, _ in task.train_epoch(0):
        count = task.axes.count(inputs)
        if not found:
            examples = task.axes.count(network.example_inputs)
            size, example = (sum(map(torch.numel, values)) for values in (inputs, network.example_inputs))
            larger = max(1.0, size / count / (example / examples))  # longer sequences, larger images
            left = affordable_samples(network, most, examples, larger)
        found.append(inputs if is_fixed or count <= left else task.axes.take(inputs, range(left)))
        left -= count
        if left <= 0:
            break
    return found


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run a block with that many threads of PyTorch; everything else has one, so that its last bits stay the same."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def checkpoint_path(job: protocol.TrainJob, index: int) -> Path:
    """Return the path of the checkpoint of one of the job's steps; a restarted job reuses finished trainings."""
    path = Path(job.checkpoint)
    return path.with_name(f"{path.stem}-{index}{path.suffix}")

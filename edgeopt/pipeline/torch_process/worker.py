"""A process that does the torch half of candidates: ``python -m edgeopt.pipeline.torch_process.worker TASK``.

Jobs come as JSON lines on stdin, answers go as JSON lines to what was stdout; whatever user code prints goes to stderr.
One torch thread. It leaves when stdin ends, so it never outlives its parent.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import torch
from torch import fx, nn

from edgeopt.bench.outputs import read_batches, write_batches
from edgeopt.errors import DivergedError, EdgeoptError, StepError, TaskError
from edgeopt.export.to_onnx import export
from edgeopt.passes.distill.teacher import TeacherOutputs
from edgeopt.passes.distill.train import Distillation, TrainingResult
from edgeopt.passes.low_rank.factor import factorize, low_rank_table
from edgeopt.passes.low_rank.proof import verify_factorization
from edgeopt.passes.network import Network
from edgeopt.passes.profile import weight_times
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import NEEDS_BATCHES, importance, strongest
from edgeopt.passes.prune.lasso import GroupLasso
from edgeopt.passes.prune.proof import verify
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import group_table
from edgeopt.passes.quantization_aware import fake_quantized_module
from edgeopt.passes.sparsify import Sparsity, loss_curve
from edgeopt.pipeline.boundary import run_step, run_user_code
from edgeopt.pipeline.onnx_teacher import OnnxTeacher
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.quantization import FakeQuantSites
from edgeopt.records.recipe import Distill, LowRank, Prune, QuantizeAware, Sparsify, Student
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.task import Batch, CheckedTask, flat_outputs, load_task

SALIENCY_BATCHES = 16
"""How many training batches a gradient-based importance looks at."""
CURVE_BATCHES = 4
"""Evaluation batches on which a network with zeros is looked at."""
WARMUP_STEPS = 2


class TorchJobs:
    """The task and its networks, made on first use and kept for the next job."""

    def __init__(self, task: CheckedTask, answer: Any) -> None:
        self.task = task
        self.answer = answer
        self.sources: dict[str, Network] = {}

    def source(self, name: str) -> Network:
        """Return the traced original, or a traced student."""
        if name not in self.sources:
            self.sources[name] = run_step("trace", Network.trace, self.module(name), self.task.example_inputs)
        return self.sources[name]

    def module(self, name: str) -> nn.Module:
        """Return the user's module: the trained model or a student.

        Raises:
            TaskError: there is no such student.
        """
        if name == "original":
            return self.task.model
        if name not in self.task.students:
            raise TaskError(f"{self.task.spec}: there is no student '{name}'; there are {sorted(self.task.students)}.")
        student: nn.Module = self.task.students[name]().eval()
        self.task.check_runs(student, f"student '{name}'")
        return student

    def network(self, ref: protocol.NetworkRef) -> Network:
        """Return a network with weights of its own."""
        original = self.source(ref.source)
        return original.copy() if ref.file is None else Network.load(Path(ref.file), original)

    @cached_property
    def saliency_batches(self) -> list[Batch]:
        """The first training batches of a stream of their own."""
        batches = self.task.train_epoch(0)
        return [batch for _, batch in zip(range(SALIENCY_BATCHES), batches, strict=False)]

    def table(self, job: protocol.TableJob) -> protocol.TableDone:
        """Write a network's group table."""
        start = time.perf_counter()
        network = self.network(job.network)
        groups = analyse(network)
        batches = self.saliency_batches if job.importance.method in NEEDS_BATCHES else None
        scores = importance(network, groups, job.importance, batches, self.task.loss)
        table = group_table(network, groups, scores, self.task.example_inputs)
        write_whole(Path(job.out), to_json(table))
        return protocol.TableDone(seconds=time.perf_counter() - start)

    def profile(self, job: protocol.ProfileJob) -> protocol.ProfileDone:
        """Time a network's operators."""
        ns, total = weight_times(self.network(job.network), self.task.example_inputs)
        return protocol.ProfileDone(ns=ns, total_ns=total)

    def factors(self, job: protocol.LowRankJob) -> protocol.LowRankDone:
        """Write what a network's layers would become as two."""
        start = time.perf_counter()
        table = low_rank_table(self.network(job.network), self.saliency_batches, job.losses, job.step)
        write_whole(Path(job.out), to_json(table))
        return protocol.LowRankDone(seconds=time.perf_counter() - start)

    def curve(self, job: protocol.CurveJob) -> protocol.CurveDone:
        """Find a network's loss at several shares of zeros, chosen by magnitude and by first-order change."""
        start = time.perf_counter()
        module = self.network(job.network).eval_module
        held_back = [batch for _, batch in zip(range(CURVE_BATCHES), self.task.eval_batches(), strict=False)]
        methods = ("magnitude", "taylor")
        points = {
            method: loss_curve(module, method, self.saliency_batches, held_back, self.task.loss) for method in methods
        }
        curve = SparsityCurve(points=points, samples=sum(len(inputs[0]) for inputs, _ in held_back))
        return protocol.CurveDone(curve=curve, seconds=time.perf_counter() - start)

    def train(self, job: protocol.TrainJob) -> protocol.TrainDone:
        """Apply the steps and write the network."""
        start = time.perf_counter()
        source, network = job.parent.source, self.network(job.parent)
        sparsity: Sparsity | None = None
        rounded: fx.GraphModule | None = None
        notes: tuple[str, ...] = ()
        proofs: list[float] = []
        result: TrainingResult | None = None
        for index, step in enumerate(job.steps):
            match step:
                case Student(name=name):
                    source, network = name, self.source(name).copy()
                case Prune():
                    network, proof = self.prune(network, step, self.table_file(job) if index == 0 else None)
                    proofs.append(proof)
                case LowRank(layers=layers):
                    before, network = network, factorize(network, layers, self.saliency_batches)
                    proofs.append(verify_factorization(before, layers, network, self.task.example_inputs))
                case Sparsify():
                    epochs = sum(later.epochs for later in job.steps if isinstance(later, Distill))
                    sparsity = Sparsity(step, self.saliency_batches, self.task.loss, epochs)
                    if epochs == 0:
                        sparsity.masks(network.eval_module, 0)
                case QuantizeAware():
                    rounded, notes = self.rounded(network, job.int8)
                case Distill():
                    result = self.distill(network, rounded, step, job, index, sparsity)
        if rounded is not None and job.int8 is not None:
            self.write_outputs(rounded, Path(job.int8.inputs), Path(job.int8.expected))
        partial = Path(job.out).with_suffix(".partial")
        network.save(partial)
        partial.replace(job.out)
        for index in range(len(job.steps)):
            checkpoint_of(job, index).unlink(missing_ok=True)
        return protocol.TrainDone(
            source=source,
            parameters=sum(value.numel() for value in network.eval_module.parameters()),
            best_score=None if result is None else result.best_score,
            best_epoch=None if result is None else result.best_epoch,
            proof_error=max(proofs, default=None),
            notes=(*network.notes, *notes),
            seconds=time.perf_counter() - start,
        )

    def table_file(self, job: protocol.TrainJob) -> dict[str, tuple[float, ...]]:
        """Return the importance of the parent's channels, as its table has it."""
        assert job.table is not None
        table = from_json(Path(job.table).read_bytes(), GroupTable)
        return {group.name: group.importance for group in table.free}

    def prune(
        self, network: Network, step: Prune, scores: Mapping[str, Sequence[float]] | None
    ) -> tuple[Network, float]:
        """Cut ``network`` to the step's widths, keeping the channels of highest importance, and prove the cut.

        A network that an earlier step of the recipe has changed has no table: its channels are scored now.
        """
        groups = analyse(network)
        if scores is None:
            batches = self.saliency_batches if step.importance.method in NEEDS_BATCHES else None
            found = importance(network, groups, step.importance, batches, self.task.loss)
            scores = {name: values.tolist() for name, values in found.items()}
        keep = strongest(scores, {name: width for name, width in step.widths.items() if name in scores})
        pruned = prune(network, groups, keep)
        return pruned, verify(network, groups, keep, pruned, self.task.example_inputs)

    def rounded(self, network: Network, int8: protocol.Int8Reference | None) -> tuple[fx.GraphModule, tuple[str, ...]]:
        """Return a network as its int8 file computes, over the same tensors, and notes."""
        assert int8 is not None
        roundings = from_json(Path(int8.roundings).read_bytes(), FakeQuantSites)
        with np.load(int8.values, allow_pickle=False) as stored:
            return fake_quantized_module(network, roundings, {name: stored[name] for name in stored.files})

    def distill(
        self,
        network: Network,
        rounded: fx.GraphModule | None,
        step: Distill,
        job: protocol.TrainJob,
        index: int,
        sparsity: Sparsity | None,
    ) -> TrainingResult:
        """Train ``network`` in place, taught by the original or by the task's teacher.

        ``rounded`` is what runs over its tensors, if given.
        """
        folder = Path(job.teacher)
        teacher = OnnxTeacher(self.task, folder) if self.task.teacher else self.source("original").eval_module
        lessons = TeacherOutputs(folder, self.task, teacher, epochs=step.epochs, seed=job.seed)
        return Distillation(
            rounded or network.train_module,
            rounded or network.eval_module,
            self.task,
            step,
            lessons,
            sparsity=sparsity,
            lasso=GroupLasso(network, step.group_lasso) if step.group_lasso > 0 else None,
            checkpoint=checkpoint_of(job, index),
            progress=lambda epoch, epochs, score: self.answer(
                protocol.EpochProgress(epoch=epoch, epochs=epochs, score=score)
            ),
        ).run()

    def speed(self, job: protocol.SpeedJob) -> protocol.SpeedDone:
        """Train a copy of the original on one batch, again and again."""
        inputs, targets = self.saliency_batches[0]
        module = self.source("original").copy().train_module
        steps = 0
        begin = time.perf_counter()
        while steps <= WARMUP_STEPS or time.perf_counter() - begin < job.seconds:
            if steps == WARMUP_STEPS:
                begin = time.perf_counter()
            self.task.loss(module(*inputs), targets).backward()  # type: ignore[no-untyped-call]
            steps += 1
        return protocol.SpeedDone(steps_per_second=(steps - WARMUP_STEPS) / (time.perf_counter() - begin))

    def export(self, job: protocol.ExportJob) -> protocol.ExportDone:
        """Export a network, and run it on the parity inputs."""
        start = time.perf_counter()
        network = self.network(job.network)
        exported = export(
            network.eval_module,
            self.task.example_inputs,
            Path(job.out),
            input_names=self.task.input_names,
            output_names=self.task.output_names,
            max_opset=job.max_opset,
            max_ir=job.max_ir,
            exporter="torchscript" if job.exporter == "torchscript" else "dynamo",
        )
        self.write_outputs(network.eval_module, Path(job.inputs), Path(job.expected))
        return protocol.ExportDone(
            exporter=exported.exporter,
            notes=(*network.notes, *exported.notes),
            seconds=time.perf_counter() - start,
        )

    def write_outputs(self, module: nn.Module, inputs: Path, out: Path) -> None:
        """Write a module's outputs on a file of inputs."""
        found = []
        for batch in read_batches(inputs):
            with torch.no_grad():
                outputs = flat_outputs(module(*(torch.from_numpy(batch[name]) for name in self.task.input_names)))
            found.append(dict(zip(self.task.output_names, (value.numpy() for value in outputs), strict=True)))
        write_batches(out, found)

    def probe(self, job: protocol.ProbeJob) -> protocol.ProbeDone:
        """Export the original at other widths, for its sizes alone."""
        start = time.perf_counter()
        network = self.source("original")
        groups = analyse(network)
        for widths, out in zip(job.widths, job.outs, strict=True):
            cut = prune(network, groups, {name: range(width) for name, width in widths.items()})
            export(
                cut.eval_module,
                self.task.example_inputs,
                Path(out),
                input_names=self.task.input_names,
                output_names=self.task.output_names,
                max_opset=job.max_opset,
                max_ir=job.max_ir,
                exporter="torchscript" if job.exporter == "torchscript" else "dynamo",
            )
        return protocol.ProbeDone(seconds=time.perf_counter() - start)

    def run(self, job: protocol.TorchJob) -> protocol.TorchAnswer:
        """Do one job; an error becomes an answer."""
        try:
            match job:
                case protocol.TableJob():
                    return run_step("analyse", self.table, job)
                case protocol.ProfileJob():
                    return run_step("profile", self.profile, job)
                case protocol.LowRankJob():
                    return run_step("low-rank", self.factors, job)
                case protocol.CurveJob():
                    return run_step("sparsify", self.curve, job)
                case protocol.TrainJob():
                    return run_step("train", self.train, job)
                case protocol.SpeedJob():
                    return run_step("train", self.speed, job)
                case protocol.ExportJob():
                    return run_step("export", self.export, job)
                case protocol.ProbeJob():
                    return run_step("latency table", self.probe, job)
        except EdgeoptError as error:
            return job_failed(error)


def job_failed(error: EdgeoptError) -> protocol.JobFailed:
    """Return an error as an answer."""
    step = error if isinstance(error, StepError) else None
    return protocol.JobFailed(
        stage=step.stage if step else "task",
        reason=step.reason if step else str(error),
        trace=step.trace if step else None,
        diverged=isinstance(error, DivergedError),
        user_error=error.exit_code == TaskError.exit_code,
    )


def checkpoint_of(job: protocol.TrainJob, index: int) -> Path:
    """Return the checkpoint of one step of a recipe: a finished one is taken up whole when the job begins again."""
    path = Path(job.checkpoint)
    return path.with_name(f"{path.stem}-{index}{path.suffix}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_suffix(f".partial-{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


def read_lines(lines: queue.Queue[bytes]) -> None:
    """Feed stdin's lines to a queue; leave at once when it ends, whatever else is under way."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Serve jobs until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(value: protocol.TorchAnswer) -> None:
        answers.write(to_json(value) + b"\n")
        answers.flush()

    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
    decoder = msgspec.json.Decoder(protocol.TorchJob)
    half: TorchJobs | None = None
    while True:
        job = decoder.decode(lines.get())
        try:
            half = half or TorchJobs(run_user_code(sys.argv[1], "loading the task", load_task, sys.argv[1]), answer)
        except EdgeoptError as error:
            answer(job_failed(error))
            continue
        answer(half.run(job))


if __name__ == "__main__":
    main()

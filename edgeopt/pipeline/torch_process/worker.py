"""A process that does the PyTorch part of candidates: ``python -m edgeopt.pipeline.torch_process.worker TASK``.

In: jobs, as JSON lines on stdin (``edgeopt.pipeline.torch_process.protocol``). Out: answers, as JSON lines on stdout;
everything that user code prints goes to stderr. PyTorch has one thread; trainings have as many as their job says, and
run on the device that the task names. The process and its children end when stdin ends, so they never outlive its
parent.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import fx, nn

from edgeopt.bench.outputs import read_batches, write_batches
from edgeopt.errors import EdgeoptError, InputError, StepError
from edgeopt.export.to_onnx import ExportResult, export
from edgeopt.graph.weights.tied import write_tied_once
from edgeopt.passes.distill.epoch_choice import evaluate
from edgeopt.passes.distill.train import AS_IT_BEGAN, TrainingResult
from edgeopt.passes.low_rank.factorization import build_low_rank_table, factorize
from edgeopt.passes.low_rank.proof import verify_factorization
from edgeopt.passes.network import Network
from edgeopt.passes.profile import time_weights
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.depth import inner_branches, measure_branches
from edgeopt.passes.prune.importance import NEEDS_BATCHES, choose_strongest, score_channels
from edgeopt.passes.prune.proof import verify_pruning
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import build_group_table
from edgeopt.passes.quantization_aware import fake_quantize
from edgeopt.passes.reconstruct.fit import reconstruct
from edgeopt.passes.sparsify import SparsitySchedule, measure_loss_curve
from edgeopt.pipeline.boundary import kind_of, run_step, tell_apart
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.parity_data import run_batch, write_parity_data
from edgeopt.pipeline.torch_process.serving import serve_parent
from edgeopt.pipeline.torch_process.task_networks import TaskNetworks
from edgeopt.pipeline.torch_process.training import Trainer, checkpoint_path, first_inputs, threads
from edgeopt.pipeline.user_code import load_guarded_task
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.quantization import FakeQuantSites
from edgeopt.records.recipe import Distill, LowRank, Prune, QuantizeAware, Sparsify, Student
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.store.files import write_whole
from edgeopt.task import CheckedTask
from edgeopt.task.dynamic_axes import graph_axes

_CURVE_BATCHES = 4
"""Selection batches on which a network with zeros is evaluated."""


class TorchJobs:
    """Does the jobs of one torch process.

    Args:
        task: The user's task.
        answer: Sends an answer to the parent; called for the progress of trainings.
    """

    def __init__(self, task: CheckedTask, answer: Callable[[protocol.TorchAnswer], None]) -> None:
        self.task = task
        self.answer = answer
        self.networks = TaskNetworks(task)
        self.trainer = Trainer(task, answer)

    def find_input_sizes(self, job: protocol.InputSizesJob) -> protocol.InputSizesDone:
        """Find the sizes to which a model's image can be shrunk."""
        sizes, reason = self.networks.input_sizes(job.network)
        return protocol.InputSizesDone(sizes=tuple(sizes), reason=reason)

    def write_group_table(self, job: protocol.TableJob) -> protocol.TableDone:
        """Write a network's group table."""
        start = time.perf_counter()
        network = self.networks.load(job.network)
        groups = analyse(network)
        batches = self.networks.saliency_batches if job.importance.method in NEEDS_BATCHES else None
        scores = score_channels(network, groups, job.importance, batches, self.task.loss)
        branches = inner_branches(network, groups)
        seen = self.networks.saliency_batches if branches else []
        losses = measure_branches(network, groups, branches, scores, seen, self.task.loss)
        table = build_group_table(network, groups, scores, self.task.example_inputs, losses)
        write_whole(Path(job.out), to_json(table))
        return protocol.TableDone(seconds=time.perf_counter() - start)

    def profile(self, job: protocol.ProfileJob) -> protocol.ProfileDone:
        """Time a network's operators."""
        ns, total = time_weights(self.networks.load(job.network), self.task.example_inputs)
        return protocol.ProfileDone(ns=ns, total_ns=total)

    def write_low_rank_table(self, job: protocol.LowRankJob) -> protocol.LowRankDone:
        """Write the table of the factorizations of a network's large layers."""
        start = time.perf_counter()
        table = build_low_rank_table(
            self.networks.load(job.network), self.networks.saliency_batches, job.losses, job.step
        )
        write_whole(Path(job.out), to_json(table))
        return protocol.LowRankDone(seconds=time.perf_counter() - start)

    def measure_curve(self, job: protocol.CurveJob) -> protocol.CurveDone:
        """Measure the loss at several shares of zeros, chosen by magnitude and by first-order change of the loss."""
        start = time.perf_counter()
        module = self.networks.load(job.network).eval_module
        selection = [batch for _, batch in zip(range(_CURVE_BATCHES), self.task.eval_batches(), strict=False)]
        methods = ("magnitude", "taylor")
        points = {
            method: measure_loss_curve(module, method, self.networks.saliency_batches, selection, self.task.loss)
            for method in methods
        }
        curve = SparsityCurve(points=points, samples=sum(len(inputs[0]) for inputs, _ in selection))
        return protocol.CurveDone(curve=curve, seconds=time.perf_counter() - start)

    def train(self, job: protocol.TrainJob) -> protocol.TrainDone:
        """Apply the steps and write the network."""
        start = time.perf_counter()
        source, size = job.parent.source, job.input_size
        network = self.networks.load(job.start)
        sparsity: SparsitySchedule | None = None
        fake_quantized: fx.GraphModule | None = None
        notes: tuple[str, ...] = ()
        proofs: list[float] = []
        result: TrainingResult | None = None
        for index, step in job.open_steps:
            match step:
                case Student(name=name):
                    source, network = name, self.networks.source(name)
                case Prune():
                    network, proof = self.prune(network, step, self.read_importance(job) if index == 0 else None)
                    proofs.append(proof)
                case LowRank(layers=layers):
                    before, network = network, factorize(network, layers, self.networks.saliency_batches)
                    proofs.append(verify_factorization(before, layers, network, self.task.example_inputs))
                case Sparsify():
                    network = self.networks.changeable(network)
                    epochs = sum(later.epochs for later in job.steps if isinstance(later, Distill))
                    sparsity = SparsitySchedule(step, self.networks.saliency_batches, self.task.loss, epochs)
                    if epochs == 0:
                        sparsity.begin_epoch(network.eval_module, 0)
                case QuantizeAware():
                    network = self.networks.changeable(network)
                    fake_quantized, notes = self.fake_quantize(network, job.int8)
                case Distill():
                    network, original = self.networks.changeable(network), self.networks.source("original")
                    result = self.trainer.distill(network, fake_quantized, step, job, index, sparsity, original)
                    notes = (*notes, *result.notes)
        if isinstance(job.steps[0], Student):
            network = self.networks.merge_branches(network)
        ended_after = None if result is None else result.ended_after
        if job.rank == 0:
            self.write_trained(job, network, fake_quantized, is_whole=ended_after is None)
        return protocol.TrainDone(
            source=source,
            input_size=size,
            parameters=sum(value.numel() for value in network.eval_module.parameters()),
            best_score=self.score_cut(job, network) if result is None else result.best_score,
            best_epoch=None if result is None or result.best_epoch == AS_IT_BEGAN else result.best_epoch,
            stopped=result is not None and result.stopped,
            ended_after=ended_after,
            proof_error=max(proofs, default=None),
            notes=(*network.notes, *notes),
            seconds=time.perf_counter() - start,
        )

    def score_cut(self, job: protocol.TrainJob, network: Network) -> float | None:
        """Return the score of a network that was cut and fitted, but not trained."""
        is_fitted = job.rank == 0 and any(isinstance(step, Prune) and step.fitted_samples for step in job.steps)
        return evaluate(network.eval_module, self.task) if is_fitted else None

    def write_trained(
        self, job: protocol.TrainJob, network: Network, fake_quantized: fx.GraphModule | None, is_whole: bool
    ) -> None:
        """Write a network and, if it was trained for int8, its outputs; of a whole training the checkpoints then go."""
        if fake_quantized is not None and job.int8 is not None:
            self.write_outputs(fake_quantized, Path(job.int8.inputs), Path(job.int8.expected))
        write_whole(Path(job.out), network.save)
        for index in range(len(job.steps) if is_whole else 0):
            checkpoint_path(job, index).unlink(missing_ok=True)

    def read_importance(self, job: protocol.TrainJob) -> dict[str, tuple[float, ...]]:
        """Return the importance of the parent's channels, from its group table."""
        assert job.table is not None
        table = from_json(Path(job.table).read_bytes(), GroupTable)
        return {group.name: group.importance for group in table.free}

    def prune(
        self, network: Network, step: Prune, scores: Mapping[str, Sequence[float]] | None
    ) -> tuple[Network, float]:
        """Cut ``network`` to the step's widths, keeping the channels of highest importance, verify the cut, and fit.

        Args:
            network: The network.
            step: The widths and the kind of importance.
            scores: Importance of its channels, by group; None if an earlier step changed the network, so that its
                channels have to be scored now.

        Returns:
            The smaller network, and the largest relative error of ``verify_pruning``.
        """
        groups = analyse(network)
        if scores is None:
            batches = self.networks.saliency_batches if step.importance.method in NEEDS_BATCHES else None
            arrays = score_channels(network, groups, step.importance, batches, self.task.loss)
            scores = {name: values.tolist() for name, values in arrays.items()}
        keep = choose_strongest(scores, {name: width for name, width in step.widths.items() if name in scores})
        pruned = prune(network, groups, keep)
        error = verify_pruning(network, groups, keep, pruned, self.task.example_inputs)
        if step.fitted_samples:
            reconstruct(network, pruned, first_inputs(self.task, network, step.fitted_samples))
        return pruned, error

    def fake_quantize(
        self, network: Network, int8: protocol.Int8Reference | None
    ) -> tuple[fx.GraphModule, tuple[str, ...]]:
        """Return a module that rounds as the network's int8 file does, over the network's tensors, and notes."""
        assert int8 is not None
        sites = from_json(Path(int8.sites).read_bytes(), FakeQuantSites)
        with np.load(int8.values, allow_pickle=False) as stored:
            return fake_quantize(network, sites, {name: stored[name] for name in stored.files})

    def measure_speed(self, job: protocol.SpeedJob) -> protocol.SpeedDone:
        """Measure how fast a copy of the original trains."""
        return self.trainer.measure_speed(
            self.networks.source("original").copy(), self.networks.saliency_batches[0], job
        )

    def export(self, job: protocol.ExportJob) -> protocol.ExportDone:
        """Export a network, and run it on the parity inputs."""
        start = time.perf_counter()
        if job.network.source == protocol.GIVEN:
            _ = self.task.score_kind  # a given file whose outputs cannot be judged is not trained, and says so now
        network = self.networks.load(job.network)
        exported = self.write_onnx(network.eval_module, job, Path(job.out))
        write_tied_once(exported.path)
        data = write_parity_data(network, self.task, Path(job.examples), Path(job.inputs), Path(job.expected))
        return protocol.ExportDone(
            exporter=exported.exporter,
            edge_inputs=data.edge_inputs,
            rounding=data.rounding,
            parameters=sum(value.numel() for value in network.eval_module.parameters()),
            merged_sums=network.merged_sums,
            notes=(*network.notes, *exported.notes),
            seconds=time.perf_counter() - start,
        )

    def write_onnx(self, module: nn.Module, job: protocol.ExportJob | protocol.ProbeJob, path: Path) -> ExportResult:
        """Export a module with the names and dynamic dimensions of the task."""
        task = self.task
        return export(
            module,
            task.example_inputs,
            path,
            input_names=task.input_names,
            output_names=task.output_names,
            max_opset=job.max_opset,
            max_ir=job.max_ir,
            exporter="torchscript" if job.exporter == "torchscript" else "dynamo",
            axes=graph_axes(task.interface.graph_dims),
            output_batch=task.axes.outputs,
        )

    def write_outputs(self, module: nn.Module, inputs: Path, out: Path) -> None:
        """Write a module's outputs for a file of inputs."""
        write_batches(out, [run_batch(module, self.task, batch) for batch in read_batches(inputs)])

    def export_probes(self, job: protocol.ProbeJob) -> protocol.ProbeDone:
        """Export the original at other widths; only the sizes of these files matter, not their weights."""
        start = time.perf_counter()
        network = self.networks.source("original")
        groups = analyse(network)
        for widths, out in zip(job.widths, job.outs, strict=True):
            cut = prune(network, groups, {name: range(width) for name, width in widths.items()})
            self.write_onnx(cut.eval_module, job, Path(out))
        return protocol.ProbeDone(seconds=time.perf_counter() - start)

    def run(self, job: protocol.TorchJob) -> protocol.TorchAnswer:
        """Do one job; an error becomes an answer."""
        try:
            match job:
                case protocol.TableJob():
                    return run_step("analyse", self.write_group_table, job)
                case protocol.InputSizesJob():
                    return run_step("input sizes", self.find_input_sizes, job)
                case protocol.ProfileJob():
                    return run_step("profile", self.profile, job)
                case protocol.LowRankJob():
                    return run_step("low-rank", self.write_low_rank_table, job)
                case protocol.CurveJob():
                    return run_step("sparsify", self.measure_curve, job)
                case protocol.TrainJob():
                    with threads(job.threads):
                        return run_step("train", self.train, job)
                case protocol.SpeedJob():
                    with threads(job.threads):
                        return run_step("train", self.measure_speed, job)
                case protocol.ExportJob():
                    return run_step("export", self.export, job)
                case protocol.ProbeJob():
                    return run_step("latency table", self.export_probes, job)
        except EdgeoptError as error:
            return as_job_failed(tell_apart(self.task.spec, error))


def as_job_failed(error: EdgeoptError) -> protocol.JobFailed:
    """Return an error as an answer."""
    step = error if isinstance(error, StepError) else None
    return protocol.JobFailed(
        stage=step.stage if step else "task",
        reason=step.reason if step else str(error),
        trace=step.trace if step else None,
        kind="user" if isinstance(error, InputError) else kind_of(error),
    )


def main() -> None:
    """Serve jobs until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    lines, answer = serve_parent()
    decoder = msgspec.json.Decoder(protocol.TorchJob)
    jobs: TorchJobs | None = None
    while True:
        job = decoder.decode(lines.get())
        try:
            jobs = jobs or TorchJobs(load_guarded_task(sys.argv[1]), answer)
        except EdgeoptError as error:
            answer(as_job_failed(error))
            continue
        answer(jobs.run(job))


if __name__ == "__main__":
    main()

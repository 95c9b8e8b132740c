"""The networks of a task in one torch process: traced on first use, and kept for the next jobs."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from torch import nn

from edgeopt.errors import DataError, ParityError, StepError, TaskError
from edgeopt.passes.branches.proof import UNMERGED_NOTE, merge_note, verify_merge
from edgeopt.passes.network import Network
from edgeopt.passes.tracing.trace import FIXED_BATCH_NOTE
from edgeopt.pipeline.boundary import is_technical, run_step
from edgeopt.pipeline.torch_process import protocol
from edgeopt.task import Batch, CheckedTask
from edgeopt.task.dynamic_axes import graph_axes
from edgeopt.task.input_sizes import Size, shrinking_image, try_size, wanted_sizes
from edgeopt.task.random_states import seed_generators

_SALIENCY_BATCHES = 16
"""Training batches for gradient-based importance."""
_STUDENT_SEED = 0
"""Of a student's first weights: they are the same in every process, whatever it did before."""


class TaskNetworks:
    """The traced networks of a task, by what they started from.

    Args:
        task: The user's task.
    """

    def __init__(self, task: CheckedTask) -> None:
        self.task = task
        self.sources: dict[tuple[str, Size | None], Network] = {}

    def source(self, name: str, input_size: Size | None = None) -> Network:
        """Return the traced original, with parallel branches merged, or a traced student.

        Args:
            name: See ``protocol.NetworkRef``.
            input_size: To which its image is shrunk first.
        """
        key = (name, input_size)
        if key not in self.sources:
            module, axes = self.module(name), graph_axes(self.task.trace_dims)
            lower = None if input_size is None else try_size(module, self.task, input_size)
            with ExitStack() as stack:
                stack.enter_context(self.task.interface.flat_forward(module))
                if lower is not None:
                    stack.enter_context(shrinking_image(module, lower))
                network = run_step("trace", Network.trace, module, self.task.example_inputs, axes, share_tensors=True)
            if lower is not None:
                check_same_tensors(self.source(name), network)
            self.sources[key] = self.merge_branches(network) if name == "original" else network
        return self.sources[key]

    def input_sizes(self, ref: protocol.NetworkRef) -> tuple[list[Size], str]:
        """Return the sizes to which a network's image can be shrunk, and why others are missing."""
        sizes, reason = wanted_sizes(self.task)
        found, reasons = [], [reason] if reason else []
        for size in sizes:
            try:
                run_step("input sizes", self.load, msgspec.structs.replace(ref, input_size=size))
            except (StepError, DataError) as error:  # the model's own code meets a size that it was not made for
                if is_technical(error.__cause__):
                    raise
                text = error.reason if isinstance(error, StepError) else str(error)
                reasons.append(f"at {size[0]}x{size[1]}, {text.splitlines()[0]}")
            else:
                found.append(size)
        return found, "; ".join(reasons)

    def merge_branches(self, network: Network) -> Network:
        """Return a network with parallel branches merged and the merge proven, or itself if it has none.

        A network whose merge is off by more than rounding stays as it is, and a note says so.
        """
        if not network.has_parallel_branches:
            return network
        is_fixed = any(note.startswith(FIXED_BATCH_NOTE) for note in network.notes)
        merged = network.merge_branches(network.example_inputs if is_fixed else self.saliency_batches[0][0])
        try:
            error = verify_merge(network, merged, network.example_inputs)
        except ParityError as found:
            network.notes = (*network.notes, f"{UNMERGED_NOTE}: {found.reason}")
            return network
        merged.notes = (*network.notes, merge_note(merged.merged_sums, error))
        return merged

    def module(self, name: str) -> nn.Module:
        """Return the user's module: the trained model or a student.

        Raises:
            TaskError: there is no such student.
        """
        if name in ("original", protocol.AS_TRAINED, protocol.GIVEN):
            return self.task.model
        if name not in self.task.students:
            raise TaskError(f"{self.task.spec}: the task has no student '{name}', only {sorted(self.task.students)}.")
        seed_generators(_STUDENT_SEED)
        return self.task.student(name)

    def load(self, ref: protocol.NetworkRef) -> Network:
        """Return a network that nothing may change: other jobs read it too."""
        original = self.source(ref.source, ref.input_size)
        return original if ref.file is None else Network.load(Path(ref.file), original)

    def changeable(self, network: Network) -> Network:
        """Return a network whose tensors may be changed in place: a copy, if it is one that other jobs read."""
        return network.copy() if network in self.sources.values() else network

    @cached_property
    def saliency_batches(self) -> list[Batch]:
        """The first batches of a training stream that no training uses."""
        batches = self.task.train_epoch(0)
        return [batch for _, batch in zip(range(_SALIENCY_BATCHES), batches, strict=False)]


def check_same_tensors(whole: Network, lower: Network) -> None:
    """Check that a trace at a lower resolution has the tensors of the whole one, whose files it loads.

    Raises:
        StepError: a tensor is made from the size of the image, such as a grid of positions.
    """
    before, after = whole.state(), lower.state()
    for name, value in after.items():
        if name in before and not torch.equal(before[name], value):
            raise StepError("input sizes", f"'{name}' depends on the size of the image")

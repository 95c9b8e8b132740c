"""The networks of a task in one torch process: traced on first use, and kept for the next jobs."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from torch import nn

from edgeopt.errors import ParityError, TaskError
from edgeopt.passes.branches.proof import UNMERGED_NOTE, merge_note, verify_merge
from edgeopt.passes.network import Network
from edgeopt.passes.tracing.trace import FIXED_BATCH_NOTE
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.torch_process import protocol
from edgeopt.task import Batch, CheckedTask
from edgeopt.task.dynamic_axes import graph_axes
from edgeopt.task.input_sizes import Size, lower_resolution
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
            with ExitStack() as stack:
                stack.enter_context(self.task.interface.flat_forward(module))
                if input_size is not None:
                    stack.enter_context(lower_resolution(module, self.task, input_size))
                network = run_step("trace", Network.trace, module, self.task.example_inputs, axes, share_tensors=True)
            self.sources[key] = self.merge_branches(network) if name == "original" else network
        return self.sources[key]

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
            raise TaskError(f"{self.task.spec}: there is no student '{name}'; there are {sorted(self.task.students)}.")
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

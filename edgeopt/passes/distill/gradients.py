"""The gradients of one batch: in the device's precision, and in as many parts as its memory needs.

In: a module and a batch with the teacher's outputs. Out: its loss, with the gradients added up in the parameters. A
batch that does not fit into the memory is halved, again and again; the loss of each part counts by its samples, so the
gradient has the same expectation. Batch norm then takes its statistics over a part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeopt.errors import EdgeoptError, StepError
from edgeopt.passes.distill.compute import ComputeDevice, is_out_of_memory
from edgeopt.passes.distill.parts import TaughtBatch, split_samples
from edgeopt.passes.distill.ranks import ALONE, Ranks
from edgeopt.passes.distill.teacher import to_channels_last
from edgeopt.task.batch_axes import BatchAxes
from edgeopt.task.modules import widen_inputs

LossFunction = Callable[[Any, tuple[Tensor, ...], Any], Tensor]
"""Of outputs, the teacher's outputs and targets."""
OwnStep = Callable[[nn.Module, tuple[Tensor, ...], Any, tuple[Tensor, ...]], Tensor]
"""The task's own training step: of the model, inputs, targets and the teacher's outputs."""

_STAGE = "distill"


class GradientStep:
    """Computes gradients, batch after batch.

    Args:
        module: In training mode.
        compute: Where it is.
        loss: Gives the loss of outputs.
        own_step: The task's training step, which runs the model itself; None for the usual one.
        axes: Gives the batch dimension of each input and output; called if a batch has to be split.
        channels_last: Whether images are passed in channels-last memory.
        parts: How many parts a batch has at first.
        ranks: The processes that train together, each with its part of a batch.
    """

    def __init__(
        self,
        module: nn.Module,
        compute: ComputeDevice,
        loss: LossFunction,
        own_step: OwnStep | None = None,
        *,
        axes: Callable[[], BatchAxes],
        channels_last: bool = True,
        parts: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        self.module = module
        self.compute = compute
        self.loss = loss
        self.own_step = own_step
        self.axes = axes
        self.channels_last = channels_last
        self.parts = parts
        self.ranks = ranks
        self.is_loss_on_cpu = False
        self.scaler = compute.make_scaler()
        self.notes: list[str] = []

    def run(self, batch: TaughtBatch, penalty: Callable[[], Tensor] | None, check: Callable[[Tensor], None]) -> Tensor:
        """Replace the parameters' gradients by those of a batch, and return its loss.

        Args:
            batch: On the device; if several processes train together, this one's part.
            penalty: A term to add to the loss, once.
            check: Called with the loss before its gradients are computed.

        Raises:
            StepError: a single sample does not fit into the memory, or the batch cannot be split.
        """
        while True:
            parts = split_samples(batch, self.axes(), self.parts) if self.parts > 1 else [(batch, 1.0)]
            try:
                loss = self._accumulate(parts or [(batch, 1.0)], penalty if self.ranks.rank == 0 else None, check)
            except (RuntimeError, MemoryError, EdgeoptError) as error:
                if not is_out_of_memory(error):
                    raise
                loss = None
            if self.ranks.all_have(loss is not None):
                assert loss is not None
                self.ranks.add_gradients(list(self.module.parameters()))
                return self.ranks.add(loss)
            del loss
            self._make_room(batch)

    def judge(self, batch: TaughtBatch) -> float:
        """Return the loss of a batch on this rank, without gradients.

        Raises:
            StepError: as ``run``.
        """
        while True:
            parts = split_samples(batch, self.axes(), self.parts) if self.parts > 1 else None
            try:
                with torch.no_grad():
                    return sum(weight * float(self._loss(part)) for part, weight in parts or [(batch, 1.0)])
            except (RuntimeError, MemoryError, EdgeoptError) as error:
                if not is_out_of_memory(error):
                    raise
            self._make_room(batch)

    def _accumulate(
        self,
        parts: list[tuple[TaughtBatch, float]],
        penalty: Callable[[], Tensor] | None,
        check: Callable[[Tensor], None],
    ) -> Tensor:
        self.module.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.compute.device)
        for index, (part, weight) in enumerate(parts):
            loss = self._loss(part)
            if weight * part.weight != 1:
                loss = loss * (weight * part.weight)
            if penalty is not None and index == 0:
                loss = loss + penalty()
            check(loss.detach())
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _loss(self, batch: TaughtBatch) -> Tensor:
        inputs = to_channels_last(batch.inputs) if self.channels_last else batch.inputs
        if self.own_step is not None:
            with self.compute.autocast():
                return self.own_step(self.module, inputs, batch.targets, batch.teacher_outputs).float()
        with self.compute.autocast():
            outputs = self.module(*inputs)
        if self.compute.precision != "float32":
            outputs = pytree.tree_map_only(Tensor, widen_inputs, outputs)
        if not self.is_loss_on_cpu:
            try:
                return self.loss(outputs, batch.teacher_outputs, batch.targets)
            except (RuntimeError, EdgeoptError) as error:
                if self.compute.is_cpu or not _mixes_devices(error):
                    raise
            self.is_loss_on_cpu = True
            self.notes.append("the task's loss holds tensors on the CPU, so outputs are copied there in every step")
        values = pytree.tree_map_only(
            Tensor, lambda value: value.cpu(), (outputs, batch.teacher_outputs, batch.targets)
        )
        return self.loss(*values)

    def _make_room(self, batch: TaughtBatch) -> None:
        """Halve the parts of batches, outside of the handling of the error, which holds on to the memory."""
        axes = self.axes()
        samples = axes.count(batch.inputs)
        self.module.zero_grad(set_to_none=True)
        if self.compute.device.type == "cuda":
            torch.cuda.empty_cache()
        is_single = self.parts >= samples
        if is_single or split_samples(batch, axes, 2 * self.parts) is None:
            shapes = ", ".join(str(tuple(value.shape)) for value in batch.inputs)
            subject = "a single sample" if is_single else "a batch, whose targets cannot be split into samples,"
            raise StepError(
                _STAGE,
                f"{subject} does not fit into the memory of {self.compute.device} (inputs of shape {shapes}). Make "
                "train_batches() yield smaller batches or smaller samples, or train on a device with more memory.",
            )
        self.parts *= 2
        self.notes = [note for note in self.notes if "did not fit" not in note]
        self.notes.append(
            f"batches of {samples} samples did not fit into the memory of {self.compute.device}: trained in "
            f"{self.parts} parts each, whose gradients are added up; batch norm saw the parts"
        )


def _mixes_devices(error: BaseException | None) -> bool:
    return error is not None and ("on the same device" in str(error) or _mixes_devices(error.__cause__))

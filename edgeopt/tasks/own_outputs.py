"""Tasks without labels: a network learns the original's own outputs, and is scored by how far it agrees with them.

Both a trained model (``edgeopt.tasks.unlabelled``) and a given ``.onnx`` file (``edgeopt.tasks.given.onnx_training``)
are trained in this way.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.task.batch_axes import Axes, count_samples, take_samples
from edgeopt.task.nesting import tensors_of
from edgeopt.task.protocol import Training

LABEL_FREE_TRAINING = Training(
    epochs=20, optimizer="adamw", learning_rate=5e-4, find_rate=True, weight_decay=0.0, hard_weight=0.0
)
"""Only the teacher's outputs count; the rate is one that fits networks of any kind, or trials find a lower one."""
CONVOLUTIONAL_TRAINING = msgspec.structs.replace(LABEL_FREE_TRAINING, learning_rate=3e-3)
"""For networks of convolutions, which learn faster at such a rate; attention and recurrent layers, which have to begin
with small steps, may lose what they know."""
_BATCH_SIZE = 32
_MAX_KEPT_BYTES = 256_000_000
"""Of the original's outputs for the samples that select."""
_NOISE_RATIO = 1.0
"""Of the noise in ``noisy_loss``, over the spread of the outputs."""

_GROUPS, _ROWS = "groups", "rows"
"""Keys of the targets of a training batch."""

SampleTensors = tuple[Tensor, ...]


class OwnOutputs(ABC):
    """Batches to be answered as the original does, from samples in groups of equal shapes."""

    @property
    @abstractmethod
    def sample_axes(self) -> Axes:
        """The dimension of each input that is the samples; None for an input that all samples share."""

    @property
    @abstractmethod
    def training_groups(self) -> Sequence[SampleTensors]:
        """The samples that train, in groups of equal shapes."""

    @property
    @abstractmethod
    def selection_groups(self) -> Sequence[SampleTensors]:
        """The samples that select; none of them trains."""

    @abstractmethod
    def answer(self, inputs: SampleTensors) -> tuple[Tensor, ...]:
        """Return the original's outputs."""

    def nest_inputs(self, inputs: SampleTensors) -> Any:
        """Return inputs in the form in which the model is called."""
        return inputs

    def train_batches(self, seed: int) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Yield an epoch of the samples that train, in random order; those of a batch have equal shapes.

        The targets are the numbers of the samples: a student learns from the teacher's outputs, and only ``loss`` asks
        for the original's.
        """
        random = torch.Generator().manual_seed(seed)
        batches = [
            (group, rows)
            for group in range(len(self.training_groups))
            for rows in _in_batches(torch.randperm(self._count(self.training_groups[group]), generator=random))
        ]
        for index in torch.randperm(len(batches), generator=random).tolist():
            group, rows = batches[index]
            inputs = self._take(self.training_groups[group], rows)
            yield self.nest_inputs(inputs), {_GROUPS: torch.full_like(rows, group), _ROWS: rows}

    def eval_batches(self) -> Iterator[tuple[Any, tuple[Tensor, ...]]]:
        """Yield the samples that select, with the original's outputs, which are kept: each epoch asks for them."""
        known = self._selection_answers
        for number, inputs in enumerate(self._batches_of(self.selection_groups)):
            answers = known[number] if number < len(known) else self.answer(inputs)
            if number == len(known) and sum(map(_count_bytes, known)) + _count_bytes(answers) <= _MAX_KEPT_BYTES:
                known.append(answers)
            yield self.nest_inputs(inputs), answers

    @cached_property
    def _selection_answers(self) -> list[tuple[Tensor, ...]]:
        """The original's outputs for the first batches that select."""
        return []

    def in_order(self, groups: Sequence[SampleTensors]) -> Iterator[tuple[Any, tuple[Tensor, ...]]]:
        """Yield samples in their order, with the original's outputs."""
        for inputs in self._batches_of(groups):
            yield self.nest_inputs(inputs), self.answer(inputs)

    def batch_sizes(self, groups: Sequence[SampleTensors]) -> list[int]:
        """Return the number of samples of each batch of ``in_order``."""
        return [len(rows) for group in groups for rows in torch.split(torch.arange(self._count(group)), _BATCH_SIZE)]

    def _batches_of(self, groups: Sequence[SampleTensors]) -> Iterator[SampleTensors]:
        for group in groups:
            for rows in torch.split(torch.arange(self._count(group)), _BATCH_SIZE):
                yield self._take(group, rows)

    def loss(self, outputs: Any, targets: dict[str, Tensor]) -> Tensor:
        """Return how far outputs are from the original's own plus noise; see ``noisy_loss``."""
        group = self.training_groups[int(targets[_GROUPS][0])]
        return noisy_loss(tensors_of(outputs), self.answer(self._take(group, targets[_ROWS].cpu())))

    def _take(self, group: SampleTensors, rows: Tensor) -> SampleTensors:
        return take_samples(group, self.sample_axes, rows.numpy())

    def _count(self, group: SampleTensors) -> int:
        return count_samples(group, self.sample_axes)


def noisy_loss(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the squared error of outputs against the original's own plus noise, over their spread.

    Without the noise the loss of the original and its gradient would be zero, and no channel would count. With it, the
    squared gradient is that of the outputs in a random direction: what a channel changes in them.

    Args:
        outputs: Of a network; whole numbers do not count.
        targets: Of the original, of the same shapes.
    """
    random, total = torch.Generator().manual_seed(0), torch.zeros(())
    for output, given in zip(outputs, targets, strict=True):
        if not output.is_floating_point():
            continue
        target = given.to(output.device)
        noise = torch.randn(target.shape, generator=random).to(target)
        spread = target.std().clamp_min(1e-6) if target.numel() > 1 else target.abs().clamp_min(1e-6)
        total = total + functional.mse_loss(output / spread, target / spread + _NOISE_RATIO * noise)
    return total


def _in_batches(rows: Tensor) -> tuple[Tensor, ...]:
    """Return batches of about equal sizes: one of a single sample has no variance to normalize by."""
    return torch.tensor_split(rows, math.ceil(len(rows) / _BATCH_SIZE))


def _count_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)

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

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.task.batch_axes import Axes, count_samples, take_samples
from edgeopt.task.nesting import tensors_of
from edgeopt.task.protocol import Training

LABEL_FREE_TRAINING = Training(epochs=20, optimizer="adamw", learning_rate=5e-4, weight_decay=0.0, hard_weight=0.0)
"""Only the teacher's outputs count; the rate is one that fits networks of any kind."""
_BATCH_SIZE = 32
_MAX_KEPT_BYTES = 256_000_000
"""Of the original's outputs for the samples that select."""
_PURE_RATIO = 0.5
"""Of the samples of a batch that are not mixed."""
_NOISE_RATIO = 1.0
"""Of the noise in ``noisy_loss``, over the spread of the outputs."""

_TABLE_RANK = 2
"""Dimensions of samples that are rows of a table, with a meaning for each column."""

_GROUPS, _ROWS, _PARTNERS, _SHARES = "groups", "rows", "partners", "shares"
"""Keys of the targets of a training batch: which samples were mixed, and how much of the first is in the mixture."""

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

    @cached_property
    def mixes_samples(self) -> bool:
        """Whether a network trains on mixtures of two samples too, which the original answers as any other input.

        This is what lets few samples teach a network ("A good teacher is patient and consistent", Beyer et al., 2022).
        Token ids, class numbers, masks and the like cannot be mixed, whatever their type is.
        """
        return all(
            _are_quantities(value)
            for group in self.training_groups
            for value, axis in zip(group, self.sample_axes, strict=True)
            if axis is not None
        )

    def train_batches(self, seed: int) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Yield an epoch of the samples that train, in random order; those of a batch have equal shapes.

        Half of them are mixed with others, but none with seed 0, which no training uses: it shows what inputs are like.
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
            targets = {_GROUPS: torch.full_like(rows, group), _ROWS: rows, **self._draw_mixture(rows, random, seed)}
            yield self.nest_inputs(self._training_inputs(targets)), targets

    def _draw_mixture(self, rows: Tensor, random: torch.Generator, seed: int) -> dict[str, Tensor]:
        """Return with which sample of the batch each is mixed, and its own share: 1 for half of them."""
        if seed == 0 or not self.mixes_samples:
            return {}
        shares = torch.rand(len(rows), generator=random)
        shares[torch.rand(len(rows), generator=random) < _PURE_RATIO] = 1.0
        return {_PARTNERS: rows[torch.randperm(len(rows), generator=random)], _SHARES: shares}

    def _training_inputs(self, targets: dict[str, Tensor]) -> SampleTensors:
        """Return the samples of a batch, mixed as its targets say."""
        targets = {name: value.cpu() for name, value in targets.items()}
        group = self.training_groups[int(targets[_GROUPS][0])]
        inputs = self._take(group, targets[_ROWS])
        if _SHARES not in targets:
            return inputs
        others = self._take(group, targets[_PARTNERS])
        return tuple(
            one if axis is None else _mix(one, other, targets[_SHARES], axis)
            for one, other, axis in zip(inputs, others, self.sample_axes, strict=True)
        )

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
        return noisy_loss(tensors_of(outputs), self.answer(self._training_inputs(targets)))

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


def _mix(one: Tensor, other: Tensor, shares: Tensor, axis: int) -> Tensor:
    """Return the weighted mean of two batches of samples, each with its own share."""
    shares = shares.to(one.dtype).reshape([-1 if dim == axis else 1 for dim in range(one.dim())])
    return torch.where(shares == 1, one, other + shares * (one - other))


def _are_quantities(values: Tensor) -> bool:
    """Tell whether numbers can be mixed: not if a column of a table has whole numbers only, or all are 0 or 1."""
    if not values.is_floating_point():
        return False
    whole = values == values.round()
    return not bool(whole.all(0).any() if values.dim() <= _TABLE_RANK else (whole & (values.abs() <= 1)).all())


def _in_batches(rows: Tensor) -> tuple[Tensor, ...]:
    """Return batches of about equal sizes: one of a single sample has no variance to normalize by."""
    return torch.tensor_split(rows, math.ceil(len(rows) / _BATCH_SIZE))


def _count_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)

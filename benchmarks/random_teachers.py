"""Tasks for any network of the zoo: random weights, random inputs, and the network's own outputs as targets.

``random_teachers.py:NAME`` is the task of the network NAME, with ``_`` in place of ``/``. Its score is R2: the share of
the outputs' variance, over the samples, that a candidate keeps; the network itself scores 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import edgeopt
from benchmarks.zoo.every import EVERY

BATCH_SIZE = 16
TRAIN_SAMPLES = 512
EVAL_SAMPLES = 128
NAMES = {name.replace("/", "_"): name for name in EVERY}


class RandomTeacher:
    """A network with random weights and data; both are the same in every process."""

    training = edgeopt.Training(optimizer="adamw", learning_rate=1e-3, kl_weight=0.0, mse_weight=1.0, hard_weight=0.0)

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def _built(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(0)
        model, example = EVERY[self.name].build()
        return model.eval(), example

    def build_model(self) -> nn.Module:
        """Return the network."""
        return self._built[0]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return two samples."""
        return self._draw(2, seed=0)

    def train_batches(self, seed: int) -> Iterable[Any]:
        """Return an epoch; every epoch has new samples."""
        return self._batches(TRAIN_SAMPLES, seed + 1)

    def eval_batches(self) -> Iterable[Any]:
        """Return the selection set."""
        return self._batches(EVAL_SAMPLES, 1_000_003)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the mean squared error over all outputs."""
        pairs = zip(_floats(outputs), _floats(targets), strict=True)
        return sum((((new - old) ** 2).mean() for new, old in pairs), torch.zeros(()))

    def score(self, pairs: Iterable[tuple[Any, Any]]) -> float:
        """Return R2, averaged over the outputs."""
        found = [([*_arrays(outputs)], [*_arrays(targets)]) for outputs, targets in pairs]
        scores = []
        for index in range(len(found[0][0])):
            new, old = (np.concatenate([pair[side][index] for pair in found]) for side in (0, 1))
            spread = float(((old - old.mean(0)) ** 2).sum())
            scores.append(1 - float(((new - old) ** 2).sum()) / (spread or 1.0))
        return float(np.mean(scores))

    def _batches(self, samples: int, seed: int) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        for number in range(samples // BATCH_SIZE):
            inputs = self._draw(BATCH_SIZE, seed * 10_007 + number)
            with torch.no_grad():
                yield inputs, self.build_model()(*(value.clone() for value in inputs))

    def _draw(self, count: int, seed: int) -> tuple[Tensor, ...]:
        """Return samples of the example's kind: normal numbers, and integers between the example's extremes."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(_draw_like(value, count, generator) for value in self._built[1])


def _draw_like(value: Tensor, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, *value.shape[1:])
    if value.is_floating_point():
        return torch.randn(shape, generator=generator)
    if value.dtype == torch.bool:
        return value[:1].expand(shape).clone()
    return torch.randint(int(value.min()), int(value.max()) + 1, shape, generator=generator, dtype=value.dtype)


def _floats(outputs: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [value for value in leaves if isinstance(value, Tensor) and value.is_floating_point()]


def _arrays(outputs: Any) -> Iterator[NDArray[np.float64]]:
    for value in pytree.tree_leaves(outputs):
        array = np.asarray(value)
        if array.dtype.kind == "f":
            yield array.reshape(len(array), -1).astype(np.float64)


def __getattr__(name: str) -> Callable[[], RandomTeacher]:
    """Return the function that makes a network's task."""
    if name not in NAMES:
        raise AttributeError(name)
    return partial(RandomTeacher, NAMES[name])

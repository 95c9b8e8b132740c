"""``Architecture``: how to build a network, its source, and the layers whose outputs can never be pruned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]
Builder = Callable[[], Built]
"""Returns a model with random weights and its example inputs, batch first, with a batch of 1 or more."""


@dataclass(frozen=True)
class Architecture:
    """One network of the zoo.

    Example: ``Architecture(residual.resnet18, "He et al., 2016", outputs=("fc",))``: the rows of ``fc`` are classes,
    so no tool may prune them, and they do not count as prunable channels.
    """

    build: Builder
    source: str
    """The paper that defines the layers."""
    outputs: tuple[str, ...]
    """Modules whose output channels can never go: they are the model's outputs, or positions of its inputs."""

"""``Task``: what a user writes, and ``Training``: how its candidates are trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from edgeopt.records.base import Record
from edgeopt.records.recipe import Importance, Optimizer


class Training(Record, frozen=True, kw_only=True):
    """How the candidates of a task are trained, and how their channels are scored for pruning."""

    epochs: int = 10
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    temperature: float = 4.0
    kl_weight: float = 0.9
    mse_weight: float = 0.0
    hard_weight: float = 0.1
    importance: Importance = Importance()
    """How channels are scored before some are removed."""
    group_lasso: float = 0.0
    """If above 0, a quarter of the epochs comes before pruning and shrinks channels with a penalty of this strength."""


class Task(Protocol):
    """A user's task: these methods, and optional members that ``CheckedTask`` lists."""

    name: str

    def build_model(self) -> nn.Module:
        """Return the trained model."""

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return one batch of inputs; it also becomes the golden inputs of the bundle."""

    def train_batches(self, seed: int) -> Iterable[tuple[Any, Any]]:
        """Return one epoch of ``(inputs, targets)``."""

    def eval_batches(self) -> Iterable[tuple[Any, Any]]:
        """Return the selection set, which decides: batches of ``(inputs, targets)``."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the training loss, a scalar."""

    def score(self, pairs: Iterable[tuple[Any, Any]]) -> float:
        """Return the score of ``(outputs, targets)`` pairs of arrays over the whole set.

        Higher is better, unless the task has ``score_direction = "lower"``.
        """

"""A classification task from a model and two data loaders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.errors import TaskError
from edgeopt.records.budget import Budget
from edgeopt.task import Training
from edgeopt.task.batches import split_batch
from edgeopt.task.inputs import forward_parameters
from edgeopt.task.nesting import first_samples, tensors_of

_Batches = Iterable[Any]
_EXAMPLES = 8


def score_top1(pairs: Iterable[tuple[Any, Any]]) -> NDArray[np.float64]:
    """Return 1.0 for each sample whose largest logit is its label's, else 0.0; logits ``(batch, classes, ...)``."""
    return np.concatenate(
        [
            (np.argmax(outputs, axis=1) == np.asarray(targets)).astype(np.float64).reshape(-1)
            for outputs, targets in pairs
        ]
    )


class Classification:
    """A ``Task`` scored by accuracy and trained with cross-entropy. Logits ``(batch, classes)``, integer labels."""

    postprocessing = "logits, one per class: the largest is the answer, softmax gives probabilities"

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        train: _Batches | Callable[[int], _Batches],
        eval: _Batches,  # noqa: A002 - the word of the field
        *,
        test: _Batches | None = None,
        name: str = "classification",
        labels: Sequence[str] = (),
        training: Training | None = None,
        students: Mapping[str, Callable[[], nn.Module]] | None = None,
        budgets: Mapping[str, Budget] | None = None,
        preprocessing: str = "",
        teacher: str | Path | None = None,
    ) -> None:
        self.name = name
        self.labels = tuple(labels)
        self.training = training or Training()
        self.students = students or {}
        self.budgets = budgets or {}
        self.preprocessing = preprocessing
        self.teacher = teacher
        self._model = model
        self._train = train
        self._eval = eval
        self._test = test
        caller = inspect.currentframe()
        while caller is not None and str(caller.f_globals.get("__name__", "")).startswith("edgeopt"):
            caller = caller.f_back
        self.source_module = caller.f_globals.get("__name__") if caller is not None else None

    def build_model(self) -> nn.Module:
        """Return the trained model; a function that builds it is called once."""
        if callable(self._model) and not isinstance(self._model, nn.Module):
            self._model = self._model()
        return self._model

    def example_inputs(self) -> Any:
        """Return the first evaluation inputs, at most eight samples."""
        model = self.build_model()
        parameters = [one.name for one in forward_parameters(model)] if isinstance(model, nn.Module) else []
        for batch in self._eval:
            inputs, targets = split_batch(batch, parameters, f"{self.name}: eval")
            sized = [value for value in (*tensors_of(targets), *tensors_of(inputs)) if value.ndim]
            return first_samples(inputs, _EXAMPLES, len(sized[0])) if sized else inputs
        raise TaskError(f"{self.name}: the evaluation batches are empty.")

    def train_batches(self, seed: int) -> _Batches:
        """Return one epoch; if ``train`` is a function, it is called with the seed."""
        return self._train(seed) if callable(self._train) else self._train

    def eval_batches(self) -> _Batches:
        """Return the selection set, which decides."""
        return self._eval

    def test_batches(self) -> _Batches | None:
        """Return the test set, which is looked at once."""
        return self._test

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(outputs, targets)

    def score(self, pairs: Iterable[tuple[Any, Any]]) -> float:
        """Return the accuracy, 0..1."""
        return float(score_top1(pairs).mean())

    def sample_scores(self, pairs: Iterable[tuple[Any, Any]]) -> NDArray[np.float64]:
        """Return 1.0 or 0.0 for each sample."""
        return score_top1(pairs)


def classification(
    model: nn.Module | Callable[[], nn.Module],
    train: _Batches | Callable[[int], _Batches],
    eval: _Batches,  # noqa: A002 - the word of the field
    **options: Any,
) -> Classification:
    """Make a task of a trained classifier and two data loaders.

    Args:
        model: The trained model, or a function that builds it.
        train: Batches ``(inputs, integer labels)``, or a function of a seed that returns one epoch of them.
        eval: Batches that decide which trial wins (the selection set); iterated several times.
        options: ``test``, ``name``, ``labels``, ``training``, ``students``, ``budgets``, ``preprocessing``, and
            ``teacher``: an ``.onnx`` file with the model's inputs and outputs and a dynamic batch, whose outputs every
            candidate learns from. It only teaches: ``model`` is still compressed, and is still the baseline that
            candidates are compared with. Without a teacher file, ``model`` teaches.
    """
    return Classification(model, train, eval, **options)

"""What tasks from a trained model and data loaders share, whatever their outputs mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edgeopt.errors import TaskError
from edgeopt.records.budget import Budget
from edgeopt.task import Training
from edgeopt.task.batches import split_batch
from edgeopt.task.inputs import forward_parameters
from edgeopt.task.nesting import first_samples, tensors_of

Batches = Iterable[Any]
EXAMPLES = 8


class LoaderTask:
    """A model, data loaders, and the members of a ``Task`` that its user may give; loss and score are a subclass's."""

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        train: Batches | Callable[[int], Batches],
        eval: Batches,  # noqa: A002 - the word of the field
        *,
        name: str,
        test: Batches | None = None,
        labels: Sequence[str] = (),
        training: Training | None = None,
        students: Mapping[str, Callable[[], nn.Module]] | None = None,
        budgets: Mapping[str, Budget] | None = None,
        preprocessing: str = "",
        teacher: str | Path | None = None,
        input_names: Sequence[str] = (),
        output_names: Sequence[str] = (),
        batch_dim: int | Mapping[str, int | None] | None = None,
        dynamic_axes: Mapping[str, Mapping[int, Any]] | None = None,
        keep: Sequence[str] = (),
        min_widths: Mapping[str, int] | None = None,
        drop_unseen_rows: bool = False,
        unknown_ids: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self.input_names, self.output_names = tuple(input_names), tuple(output_names)
        if batch_dim is not None:
            self.batch_dim = batch_dim
        self.dynamic_axes = dynamic_axes
        self.keep, self.min_widths = keep, min_widths
        self.drop_unseen_rows, self.unknown_ids = drop_unseen_rows, unknown_ids
        self.labels = tuple(labels)
        self.training = training or Training()
        self.students = students or {}
        self.budgets = budgets or {}
        self.preprocessing = preprocessing
        self.teacher = teacher
        for part, batches in (("train", train), ("eval", eval), ("test", test)):
            if isinstance(batches, Iterator):
                raise TaskError(
                    f"{name}: {part} is a {type(batches).__name__}, which can be iterated only once. Give a list, a "
                    f"DataLoader{', or a function of a seed that returns an epoch' if part == 'train' else ''}."
                )
        self._model = model
        self._train = train
        self._eval = eval
        self._test = test
        caller = inspect.currentframe()
        while caller is not None and str(caller.f_globals.get("__name__", "")).startswith("edgeopt"):
            caller = caller.f_back
        self.source_module = caller.f_globals.get("__name__") if caller is not None else None

    def build_model(self) -> nn.Module:
        """Return the trained model."""
        if callable(self._model) and not isinstance(self._model, nn.Module):
            self._model = self._model()  # once: it may train
        return self._model

    def example_inputs(self) -> Any:
        """Return the first evaluation inputs, at most eight samples."""
        for batch in self._eval:
            inputs, targets = self.read_batch(batch, "eval")
            sized = [value for value in (*tensors_of(targets), *tensors_of(inputs)) if value.ndim]
            return first_samples(inputs, EXAMPLES, len(sized[0])) if sized else inputs
        raise TaskError(f"{self.name}: the evaluation batches are empty.")

    def read_batch(self, batch: Any, part: str) -> tuple[Any, Any]:
        """Return inputs and targets of a batch of ``train``, ``eval`` or ``test``."""
        model = self.build_model()
        parameters = [one.name for one in forward_parameters(model)] if isinstance(model, nn.Module) else []
        return split_batch(batch, parameters, f"{self.name}: {part}")

    def train_batches(self, seed: int) -> Batches:
        """Return one epoch; if ``train`` is a function, it is called with the seed."""
        return self._train(seed) if callable(self._train) else self._train

    def eval_batches(self) -> Batches:
        """Return the selection set, which decides."""
        return self._eval

    def test_batches(self) -> Batches | None:
        """Return the test set, which is looked at once."""
        return self._test

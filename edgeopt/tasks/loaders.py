"""What tasks from a trained model and data loaders share, whatever their outputs mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from edgeopt.errors import TaskError
from edgeopt.task.batches import split_batch
from edgeopt.task.inputs import forward_parameters
from edgeopt.task.nesting import first_samples, tensors_of
from edgeopt.task.random_states import seed_own_generators
from edgeopt.tasks.model_task import ModelTask

Batches = Iterable[Any]
EXAMPLES = 8


class LoaderTask(ModelTask):
    """A task from a model and data loaders; loss and score are a subclass's."""

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        train: Batches | Callable[[int], Batches],
        eval: Batches,  # noqa: A002 - the word of the field
        *,
        name: str,
        test: Batches | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, name=name, **options)
        for part, batches in (("train", train), ("eval", eval), ("test", test)):
            if isinstance(batches, Iterator):
                raise TaskError(
                    f"{name}: {part} is a {type(batches).__name__}, which can be iterated only once. Give a list, a "
                    f"DataLoader{', or a function of a seed that returns an epoch' if part == 'train' else ''}."
                )
        self._train = train
        self._eval = eval
        self._test = test

    def example_inputs(self) -> Any:
        """Return the first evaluation inputs, at most eight samples."""
        for batch in _in_fixed_order(self._eval):
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
        """Return one epoch, the same for the same seed; if ``train`` is a function, it is called with the seed."""
        if callable(self._train):
            return self._train(seed)
        seed_own_generators(self._train, seed)
        return self._train

    def eval_batches(self) -> Batches:
        """Return the selection set, which decides, in the same order each time."""
        return _in_fixed_order(self._eval)

    def test_batches(self) -> Batches | None:
        """Return the test set, which is looked at once."""
        return None if self._test is None else _in_fixed_order(self._test)


def _in_fixed_order(loader: Batches) -> Batches:
    """Yield the batches of a loader, whose own generators are seeded when it begins."""
    seed_own_generators(loader, 0)
    yield from loader

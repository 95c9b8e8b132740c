"""Tasks from a trained model and inputs without labels: a smaller network has to agree with the model's own outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import msgspec
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.errors import DataError, TaskError
from edgeopt.records.scoring import ScoreKind
from edgeopt.scoring.facts import flat_arrays
from edgeopt.task import Training
from edgeopt.task.batch_axes import Axes, count_samples
from edgeopt.task.interface import ModelInterface
from edgeopt.task.modules import in_float32, is_double, prepare_module
from edgeopt.task.nesting import first_samples, tensors_of
from edgeopt.task.random_states import RandomStates, seed_own_generators, use_random_states
from edgeopt.task.values import to_numpy
from edgeopt.tasks.loose_inputs import LooseInputs, read_loose_inputs
from edgeopt.tasks.model_task import ScoredModelTask
from edgeopt.tasks.onnx_data.array_types import check_finite
from edgeopt.tasks.onnx_data.samples import GivenSamples, SampleGroup, group_samples
from edgeopt.tasks.onnx_data.split import (
    MIN_TRAINING_SAMPLES,
    SampleSplit,
    calibrating_part,
    describe_use,
    samples_in,
    samples_needed_to_train,
    split_by_use,
)
from edgeopt.tasks.own_outputs import LABEL_FREE_TRAINING, OwnOutputs, SampleTensors

_EXAMPLES = 8


class Unlabelled(OwnOutputs, ScoredModelTask):
    """A ``Task`` without labels; ``edgeopt.scoring`` says how outputs are compared with the model's own."""

    labels_source = "inputs"

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        inputs: Any,
        *,
        eval: Any = None,  # noqa: A002 - the word of the field
        test: Any = None,
        name: str = "unlabelled",
        training: Training | None = None,
        **options: Any,
    ) -> None:
        if options.get("states"):
            raise TaskError(
                f"{name}: edgeopt.unlabelled takes samples in any order, and so no states. Use edgeopt.classification "
                "with the trained network's own answers as labels, or build its .onnx file with --data and --state."
            )
        training = msgspec.structs.replace(training or LABEL_FREE_TRAINING, hard_weight=0.0)
        super().__init__(model, name=name, training=training, **options)
        self._inputs, self._eval, self._test = inputs, eval, test

    # -- the original

    @cached_property
    def _original(self) -> nn.Module:
        """A copy of the model, which stays as it is while edgeopt works on the model itself."""
        return in_float32(self._prepared)

    @cached_property
    def _prepared(self) -> nn.Module:
        return prepare_module(copy.deepcopy(self.build_model()), "the model", self.name)

    @cached_property
    def _interface(self) -> ModelInterface:
        return ModelInterface(self, self._original, self.name, [], was_double=is_double(self._prepared))

    @property
    def sample_axes(self) -> Axes:
        """The dimension of each input that is the samples; None for an input that all samples share."""
        return self._interface.axes.inputs

    def answer(self, inputs: SampleTensors) -> tuple[Tensor, ...]:
        """Return the model's own outputs."""
        return self._interface.run(inputs)

    def nest_inputs(self, inputs: SampleTensors) -> Any:
        """Return inputs in the form in which the user gave them."""
        return self._interface.layout.nest(inputs)

    # -- the inputs

    @cached_property
    def _read(self) -> LooseInputs:
        return self._read_part("inputs", self._inputs)

    def _read_part(self, part: str, given: Any) -> LooseInputs:
        """Read inputs; a loader that shuffles them gives the same order in every process."""
        seed_own_generators(given, 0)
        with use_random_states(RandomStates(0)):
            are_batches = getattr(self, "batch_dim", None) is not None
            source, was_double = f"{self.name}: {part}", is_double(self._prepared)
            return read_loose_inputs(given, self._original, source, are_batches=are_batches, was_double=was_double)

    def _samples(self, part: str, batches: Sequence[Any]) -> GivenSamples:
        """Return batches as groups of samples of equal shapes.

        Raises:
            DataError: inputs of a batch have different numbers of samples, or hold NaN.
        """
        source = f"{self.name}: {part}"
        names, axes = self._interface.input_names, dict(zip(self._interface.input_names, self.sample_axes, strict=True))

        def groups() -> Iterator[SampleGroup]:
            for batch in batches:
                leaves = self._interface.layout.flatten(batch, source)
                sizes = {
                    name: value.shape[axis]
                    for (name, axis), value in zip(axes.items(), leaves, strict=True)
                    if axis is not None
                }
                if len(set(sizes.values())) != 1:
                    raise DataError(f"{source}: inputs of one batch have different numbers of samples: {sizes}.")
                arrays = dict(zip(names, map(to_numpy, leaves), strict=True))
                for name, values in arrays.items():
                    check_finite(source, name, values)
                yield SampleGroup(arrays, None, count_samples(leaves, self.sample_axes))

        return GivenSamples(group_samples(groups(), axes, source), axes)

    @cached_property
    def _split(self) -> SampleSplit:
        """The samples by what they are for.

        Raises:
            DataError: there are too few.
        """
        samples = self._samples("inputs", self._read.batches)
        if self._eval is None:
            needed, split = samples_needed_to_train(), split_by_use(samples, batch=1, trains=True, are_sequences=False)
        else:
            needed, selecting = MIN_TRAINING_SAMPLES, self._samples("eval", self._read_part("eval", self._eval).batches)
            split = SampleSplit(samples.groups, calibrating_part(samples.groups, samples.axes), selecting.groups)
        if samples.samples < needed:
            held_back = "" if self._eval is not None else ": some of them train, and the others select"
            raise DataError(
                f"{self.name}: inputs has {samples.samples} samples, which are too few to train on. Give {needed} or "
                f"more{held_back}."
            )
        return split

    @cached_property
    def training_groups(self) -> list[SampleTensors]:
        """The samples that train."""
        return _as_tensors(self._split.training)

    @cached_property
    def selection_groups(self) -> list[SampleTensors]:
        """The samples that select; none of them trains."""
        return _as_tensors(self._split.selecting)

    # -- the task

    def example_inputs(self) -> Any:
        """Return the first inputs, at most eight samples."""
        first = self._read.batches[0]
        sized = [value for value in tensors_of(first) if value.ndim]
        return first_samples(first, _EXAMPLES, len(sized[0])) if sized else first

    def test_batches(self) -> Iterator[Any] | None:
        """Return the test inputs with the model's outputs; None if there are none."""
        if self._test is None:
            return None
        samples = self._samples("test", self._read_part("test", self._test).batches)
        return self.in_order(_as_tensors(samples.groups))

    def calibration_batches(self) -> Iterator[Any]:
        """Return the inputs that calibrate int8, which are some of those that train."""
        return self.in_order(_as_tensors(self._split.calibrating))

    def settle_score(
        self, outputs: Sequence[Sequence[NDArray[Any]]], names: Sequence[str], labels: Sequence[Any] | None
    ) -> ScoreKind:
        """Decide how outputs are compared with the model's own: by ``labels``, which are these for all batches.

        Raises:
            DataError, TaskError: see ``choose_agreement``; a TaskError too if no output has its samples in dimension 0.
        """
        own = outputs if labels is None else [flat_arrays(batch) for batch in labels]
        axes = self._interface.axes.outputs
        judged = [index for index, axis in enumerate(axes) if axis == 0]
        others = ", ".join(f"'{name}'" for name, axis in zip(names, axes, strict=True) if axis != 0)
        if not judged:
            raise TaskError(
                f"{self.name}: no output of the model has its samples in dimension 0 ({others}), so files cannot be "
                "compared sample by sample. Let forward() return the samples first."
            )
        kind = super().settle_score(
            [[batch[index] for index in judged] for batch in own], [names[index] for index in judged], None
        )
        split = self._split
        notes = (
            describe_use(*map(samples_in, (split.training, split.calibrating, split.selecting))) + ".",
            *((f"{self._read.note}.",) if self._read.note else ()),
            *((f"Not judged, because their samples are not in dimension 0: {others}.",) if others else ()),
        )
        parts = tuple(msgspec.structs.replace(part, index=judged[part.index]) for part in kind.parts)
        self.score_kind = msgspec.structs.replace(kind, parts=parts, notes=(*kind.notes, *notes))
        return self.score_kind


def _as_tensors(groups: Sequence[SampleGroup]) -> list[SampleTensors]:
    return [tuple(torch.from_numpy(values) for values in group.inputs.values()) for group in groups]


def unlabelled(model: nn.Module | Callable[[], nn.Module], inputs: Any, **options: Any) -> Unlabelled:
    """Make a task of a trained model and inputs without labels.

    A smaller network learns the model's outputs (distillation without labels), and is scored by how far it agrees with
    them: what an output is (classes, probabilities, vectors, boxes, numbers) follows from its values, and the result
    says what was compared. Three fifths of the inputs train, some of these calibrate int8, and the others select.

    Args:
        model: The trained model, or a function that builds it; it is called once.
        inputs: 427 samples or more: an array whose rows are samples, a dict of such arrays by the parameters of
            ``forward``, a ``DataLoader``, a ``Dataset``, a list of batches or of samples, or a function that returns
            one of these. Labels that come with them are left out. All are read into memory, once in each process.
        options: ``eval``: inputs that select, in place of a part of ``inputs``; ``test``: inputs that are looked at
            once, at the end; ``score``, such as ``"accuracy"``, ``"similarity"`` or ``"cosine"``; ``score_output``:
            compare only this output; and ``name``, ``labels``, ``training``, ``students``, ``budgets``,
            ``preprocessing``, ``teacher``, ``input_names``, ``output_names``, ``batch_dim``, ``dynamic_axes``,
            ``keep``, ``min_widths``, ``drop_unseen_rows`` and ``unknown_ids`` as those of ``classification``.

    Raises:
        DataError: on first use, if there are too few inputs, or they hold NaN.
        TaskError: on first use, if the model does not run on them.
    """
    return Unlabelled(model, inputs, **options)

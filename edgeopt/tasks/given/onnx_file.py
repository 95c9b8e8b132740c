"""A task for a model that exists only as ``.onnx``: it is measured, simplified, quantized and judged.

With enough inputs it is pruned and trained on its own outputs too (``edgeopt.tasks.given.onnx_training``).

Inputs come from ``edgeopt.tasks.onnx_data``; with labels, the outputs are judged by these (``edgeopt.scoring`` says
how). Without labels the score is the agreement with the given file's own outputs. Without data, inputs are random
numbers. The report mentions both. Some of the inputs train and calibrate int8; only the others select. PyTorch is not
imported before the data are checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.errors import DataError, TaskError
from edgeopt.graph.given.dynamic_batch import with_dynamic_batch
from edgeopt.graph.given.files import hash_given, read_given
from edgeopt.graph.given.rows import find_selected_outputs
from edgeopt.graph.given.values import check_inputs, check_outputs, model_inputs
from edgeopt.records.preprocessing import DataOptions
from edgeopt.records.scoring import ScoreKind, ScoreWish
from edgeopt.scoring.facts import check_labels
from edgeopt.task.batch_axes import BatchAxes
from edgeopt.task.dynamic_axes import BATCH, Dims, DynamicAxis
from edgeopt.tasks.given.onnx_trainable import TrainingFacts, why_untrained, write_training
from edgeopt.tasks.given.sample_axes import advise_batch_of_one, explain_no_samples, find_sample_axis, samples_first
from edgeopt.tasks.known_score import KnownScore
from edgeopt.tasks.onnx_data.ids import check_ids
from edgeopt.tasks.onnx_data.load import load_samples
from edgeopt.tasks.onnx_data.made_up import make_up_inputs
from edgeopt.tasks.onnx_data.samples import GivenSamples, InputArrays, SampleGroup
from edgeopt.tasks.onnx_data.specs import InputAxes, declared_axes, describe_inputs, open_dimensions
from edgeopt.tasks.onnx_data.split import describe_use, samples_in, split_by_use
from edgeopt.tasks.onnx_data.states import (
    SequenceStep,
    check_sequences,
    check_states,
    iterate_steps,
    sequence_specs,
    state_axes,
    state_shapes,
    without_fed_states,
)

if TYPE_CHECKING:
    from edgeopt.task.protocol import Training

_RANDOM_SAMPLES = 160
_BATCH_SIZE = 32
_CALIBRATION_BATCH_SIZE = 16
"""Smaller, so that few inputs make several batches: the sensitivity study needs batches that did not calibrate."""


class OnnxTask(KnownScore):
    """A given ``.onnx`` file and the inputs that it is judged on.

    Args:
        path: The file.
        data: A file, a folder, or ``file.py:name``; None for random numbers.
        score_wish: How it is to be scored; None leaves it to the data.
        options: How the data become inputs, and which inputs are states.
        batch_size: To be measured. A file with another fixed batch size gets a dynamic batch, which has to be checked.

    Raises:
        TaskError: the file cannot be taken.
        DataError, InputError: the data or the options do not fit it.
    """

    kind = "onnx"

    def __init__(
        self,
        path: Path,
        data: Path | str | None,
        score_wish: ScoreWish | None = None,
        options: DataOptions | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.path = path
        self.score_wish = score_wish or ScoreWish()
        self.options = options or DataOptions()
        self.spec = self.labels_source = str(path)
        self.name = path.stem
        self.labels, self.postprocessing, self.licence = tuple[str, ...](), "", ""
        self.budgets, self.students = dict[str, Any](), dict[str, Any]()
        self.file_sha256 = hash_given(read := read_given(path))
        self.given = given = with_dynamic_batch(read, batch_size)
        graph = given.model.graph
        check_inputs(path, graph)
        check_outputs(path, graph)
        self.sha256 = hash_given(given)  # of the model as edgeopt writes it
        self.inputs = describe_inputs(model_inputs(graph))
        self.input_names = tuple(spec.name for spec in self.inputs)
        self.output_names = tuple(value.name for value in graph.output)
        self.output_axes: dict[str, int | None] = {}
        """Dimension of each judged output that is the samples, once the file was run; None for the only sample's."""
        self.states = self.options.states
        check_states(path, self.states, self.input_names, self.output_names)
        unjudged = self.keep_judged_outputs(find_selected_outputs(graph))
        self._leave_out_states()
        self.random_inputs = data is None
        samples = self._draw_random(graph) if data is None else self._load(str(data))
        self.inputs = samples.name_dimensions(self.inputs)
        self.preprocessing = samples.preprocessing or ""
        if samples.labels_source:
            self.labels_source = samples.labels_source
            for group in samples.groups:
                check_labels(group.labels, self.labels_source)
        self._check_fixed_batch(data, samples)
        self.notes = (*self._packed_notes(), *unjudged, *samples.notes, *self._state_notes())
        """What the report has to say about the file and its data."""
        self.untrained_reason = why_untrained(
            given.model, samples, is_random=self.random_inputs, has_states=bool(self.states)
        )
        """Why candidates are not trained; empty if they may be."""
        self.split = split_by_use(
            samples,
            batch=self.fixed_batch or 1,
            trains=not self.untrained_reason,
            are_sequences=bool(self.states),
        )
        self.selecting = self._in_steps(samples, self.split.selecting, _BATCH_SIZE)
        self.calibrating = self._in_steps(samples, self.split.calibrating, _CALIBRATION_BATCH_SIZE)
        self.training = self._choose_training()
        """How candidates are trained; None if the file is not pruned."""

    def _choose_training(self) -> Training | None:
        if not self.split.training:
            return None
        from edgeopt.tasks.given.onnx_training import choose_training  # PyTorch, once the data are checked

        return choose_training(self.given.model.graph)

    def _load(self, data: str) -> GivenSamples:
        """Read the data; those of a model with states are sequences."""
        if not self.states:
            samples = load_samples(data, self.inputs, self.options)
            self.axes_of_inputs: InputAxes = samples.axes
        else:
            self.axes_of_inputs = state_axes(self.inputs, self.states)
            samples = load_samples(data, sequence_specs(self.inputs, self.axes_of_inputs, self.states), self.options)
            check_sequences(data, samples.groups, samples.axes)
            self.axes_of_inputs.update({name: None for name, axis in samples.axes.items() if axis is None})
        check_ids(data, self.given.model.graph, samples.groups)
        return samples

    def _leave_out_states(self) -> None:
        """Judge the other outputs: a wrong state shows in the outputs of the next steps."""
        others = tuple(name for name in self.output_names if name not in self.states.values())
        self.output_names = others or self.output_names

    @property
    def axes(self) -> BatchAxes:
        """The batch of each input and output; None for an input that all samples share."""
        return BatchAxes(self.input_axes, tuple(self.output_axes.get(name, 0) for name in self.output_names))

    def nest_outputs(self, values: Sequence[Any]) -> Any:
        """Return outputs as the score takes them, samples first: a single array as it is, several as a tuple."""
        moved = [
            samples_first(value, self.output_axes.get(name, 0))
            for name, value in zip(self.output_names, values, strict=True)
        ]
        return moved[0] if len(moved) == 1 else tuple(moved)

    @property
    def scored_by(self) -> str:
        """The score in words."""
        words = "accuracy" if self.target_batches() is not None else "agreement with the given model's outputs"
        words = words if self.score_kind is None else self.score_kind.text
        return f"{words} on random inputs" if self.random_inputs else words

    @property
    def calibrated_by(self) -> str:
        """The inputs that calibrate int8, in words."""
        selecting, calibrating = (sum(step.group.samples for step in one) for one in (self.selecting, self.calibrating))
        if self.split.is_shared:
            return (
                f"too few inputs to hold some back: the same {selecting} calibrate int8 and select, so its score drop "
                "may look smaller than it is"
            )
        return describe_use(samples_in(self.split.training), calibrating, selecting)

    @property
    def input_axes(self) -> tuple[int | None, ...]:
        """The dimension of each input that is the batch; None for one that all samples share."""
        return tuple(self.axes_of_inputs[name] for name in self.input_names)

    def batches(self) -> list[InputArrays]:
        """Return the inputs that select, in batches."""
        return [step.group.inputs for step in self.selecting]

    def fed_batches(self) -> list[InputArrays]:
        """Return the same without states that are outputs of the batch before."""
        return without_fed_states(self.selecting, self.states)

    def calibration_batches(self) -> list[InputArrays]:
        """Return the inputs that calibrate int8, in batches."""
        return [step.group.inputs for step in self.calibrating]

    def record_states(self, steps: Sequence[SequenceStep], outputs: Sequence[InputArrays]) -> None:
        """Put the outputs of each step into the states of the next, so that they are like those of a real run.

        Args:
            steps: ``selecting`` or ``calibrating``.
            outputs: Of the given file for each of them, run without fed states.
        """
        for step, before in zip(steps[1:], outputs, strict=False):
            if step.continues:
                step.group.inputs.update({name: before[output] for name, output in self.states.items()})

    def _in_steps(self, samples: GivenSamples, groups: Sequence[SampleGroup], size: int) -> list[SequenceStep]:
        """Return batches of the graph's fixed batch size, or of ``size`` if it has none, for each step of sequences."""
        step = self.fixed_batch or size
        steps: list[SequenceStep] = []
        zeros = state_shapes(self.path, self.inputs, self.options, self.axes_of_inputs)
        for group in groups:
            usable = group.samples - group.samples % step if self.fixed_batch else group.samples
            for start in range(0, usable, step):
                part = group.cut(start, min(start + step, usable), samples.axes)
                if self.states:
                    steps += iterate_steps(part, self.inputs, self.axes_of_inputs, zeros)
                else:
                    steps.append(SequenceStep(part, continues=False))
        return steps

    def write_training(self, folder: Path) -> None:
        """Write what the processes that prune and train load (``edgeopt.tasks.given.onnx_training``)."""
        model = self.given.model
        facts = TrainingFacts(
            name=self.name,
            inputs=list(self.input_names),
            outputs=[value.name for value in model.graph.output],
            score=self.score_wish.score if self.target_batches() is None else None,
            score_output=self.score_wish.output,
            shared=[name for name, axis in zip(self.input_names, self.input_axes, strict=True) if axis is None],
            dynamic={
                name: {str(dim): re.sub(r"\W", "_", axis.name) for dim, axis in dims.items()}
                for name, dims in zip(self.input_names, self.dynamic_dims, strict=True)
            },
        )
        training, selecting = self.split.training or self.split.calibrating, self.split.selecting
        write_training(folder, model, facts, training, selecting)

    def target_batches(self) -> list[Any] | None:
        """Return the labels in the same batches as the inputs, or None if there are no labels."""
        labels = [step.group.labels for step in self.selecting]
        return None if labels[0] is None else labels

    def kind_of(self, pairs: Sequence[tuple[Any, Any]], *, by_agreement: bool = False) -> ScoreKind:
        """Return the settled kind, or the one that these pairs show; without labels, that of an agreement."""
        return super().kind_of(pairs, by_agreement=by_agreement or self.target_batches() is None)

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples that the graph takes at a time; None if it takes any."""
        return next(filter(None, self._fixed_batches().values()), None)

    def _fixed_batches(self) -> dict[str, int | None]:
        axes = self.axes_of_inputs
        return {spec.name: spec.size(axes[spec.name]) for spec in self.inputs if axes[spec.name] is not None}

    @property
    def dynamic_dims(self) -> tuple[Dims, ...]:
        """The dynamic dimensions of each input besides the batch."""
        opened = (open_dimensions(spec, self.axes_of_inputs[spec.name]) for spec in self.inputs)
        return tuple({one.axis: DynamicAxis(one.name) for one in dims} for dims in opened)

    @property
    def graph_dims(self) -> tuple[Dims, ...]:
        """The same with the batch."""
        return tuple(
            dims if axis is None or spec.size(axis) else {axis: DynamicAxis(BATCH), **dims}
            for spec, axis, dims in zip(self.inputs, self.input_axes, self.dynamic_dims, strict=True)
        )

    @property
    def example_inputs(self) -> tuple[NDArray[Any], ...]:
        """The largest sample that selects, with a batch of 1."""
        largest = max(self.selecting, key=lambda step: step.group.values_of_one(self.axes_of_inputs))
        return tuple(largest.group.cut(0, 1, self.axes_of_inputs).inputs[name] for name in self.input_names)

    def keep_judged_outputs(self, unlike: dict[str, str], advice: str = "") -> tuple[str, ...]:
        """Compare files from now on only by the outputs whose rows are samples; return a note on the others.

        Args:
            unlike: Outputs whose rows are not samples, each with what decides their number.
            advice: How to fix the batch at 1, if that may help.

        Raises:
            TaskError: no output is left.
        """
        self.output_names = tuple(name for name in self.output_names if name not in unlike)
        if not unlike:
            return ()
        listed = ", ".join(f"'{name}' ({reason})" for name, reason in unlike.items())
        if self.output_names:
            return (f"not judged, because their rows are not samples: {listed}",)
        raise TaskError(explain_no_samples(self.path, listed, advice))

    def advise_batch_of_one(self) -> str:
        """Return how a user fixes the file's batch at 1; empty if it is fixed, or has no name in the user's file."""
        is_known = not (self.fixed_batch or self.given.is_changed)
        return advise_batch_of_one(self.path, self.inputs, self.axes_of_inputs) if is_known else ""

    def settle_output_axes(self, batches: Sequence[InputArrays], outputs: Sequence[InputArrays]) -> dict[str, str]:
        """Find the dimension of each judged output that is the samples; return the outputs without one, with a reason.

        The inputs are in batches of several sizes if the graph takes them, and the outputs those of the given file.
        """
        counts = [self.axes.count(batch) for batch in batches]
        has_others = any(axis == 1 for axis in self.input_axes)
        unlike: dict[str, str] = {}
        for name in self.output_names:
            shapes = [found[name].shape for found in outputs]
            found = find_sample_axis(shapes, counts, self.fixed_batch, may_be_second=has_others)
            if isinstance(found, str):
                unlike[name] = found
            else:
                self.output_axes[name] = found
        return unlike

    def row_check_batches(self) -> list[InputArrays]:
        """Return batches of different sizes (of the first ones, if the size is fixed) on which rows are counted."""
        firsts = [step.group for step in self.selecting if not step.continues]
        if self.fixed_batch:
            return [one.inputs for one in firsts[:4]]
        first = max(firsts, key=lambda one: one.samples)
        sizes = sorted({1, first.samples // 2 or 1, first.samples}, reverse=True)
        return [first.cut(0, size, self.axes_of_inputs).inputs for size in sizes]

    def parity_batches(self, samples: int) -> list[InputArrays]:
        """Return about this number of samples on which files are compared, the largest and the smallest among them."""
        ordered = sorted(self.selecting, key=lambda step: -step.group.values_of_one(self.axes_of_inputs))
        chosen = [self.selecting[0]] if len({_shapes(step) for step in ordered}) == 1 else [ordered[0], ordered[-1]]
        chosen += [step for step in self.selecting if step.continues][:1]
        size = self.fixed_batch or max(1, samples // len(chosen))
        return [step.group.cut(0, size, self.axes_of_inputs).inputs for step in chosen]

    def _state_notes(self) -> tuple[str, ...]:
        fed = ", ".join(f"'{name}' from '{output}'" for name, output in self.states.items())
        return (f"states begin with zeros, and each file's own are fed back over a sequence: {fed}",) if fed else ()

    def _packed_notes(self) -> tuple[str, ...]:
        files = self.given.other_files
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        how = "kept in two files, with" if self.given.content is None else "packed into one file with"
        return (f"{how} the weights of {shown}",) if files else ()

    def _check_fixed_batch(self, data: Path | str | None, samples: GivenSamples) -> None:
        """Check that there is at least one batch for a graph of a fixed batch size, and that it has only one.

        Raises:
            DataError: there are too few samples, or inputs of different batch sizes.
        """
        sizes = {name: size for name, size in self._fixed_batches().items() if size}
        if len(set(sizes.values())) > 1:
            raise DataError(
                f"{self.path} has inputs of several fixed batch sizes ({sizes}). Export it with a dynamic batch, or "
                "write a task in Python."
            )
        batch = self.fixed_batch or 1
        if max(group.samples for group in samples.groups) < batch:
            alike = " of one shape" if len(samples.groups) > 1 else ""
            raise DataError(
                f"{data}: the model takes batches of exactly {batch}, but there are {samples.groups[0].samples} "
                f"rows{alike}. Give {batch} or more, or export the model with a dynamic batch."
            )

    def _draw_random(self, graph: onnx.GraphProto) -> GivenSamples:
        self.axes_of_inputs = state_axes(self.inputs, self.states) if self.states else declared_axes(self.inputs)
        for spec in self.inputs:
            dims, asked = spec.dimensions, spec.name in self.options.sizes
            is_open = bool(open_dimensions(spec, self.axes_of_inputs[spec.name])) and not asked
            if not dims or is_open or self.states or not np.issubdtype(spec.dtype, np.floating):
                raise TaskError(
                    f"{self.path}: input '{spec.name}' ({spec.dtype}, shape {spec.shown}) cannot be filled with random "
                    "numbers. Give real inputs with --data inputs.npz (keys: input names, one row per sample)."
                )
        has_dynamic = any(size is None for size in self._fixed_batches().values())
        for spec in self.inputs:
            if has_dynamic and spec.batch is not None and None not in (spec.dimensions or ()):
                self.axes_of_inputs[spec.name] = None
        count = -(-_RANDOM_SAMPLES // (self.fixed_batch or 1)) * (self.fixed_batch or 1)
        specs = [
            spec._replace(dimensions=[None if axis == at else size for at, size in enumerate(spec.dimensions or ())])
            for spec, axis in zip(self.inputs, self.input_axes, strict=True)
        ]
        made = make_up_inputs(graph, specs, self.axes_of_inputs, count, self.options.sizes)
        return GivenSamples((SampleGroup(made.arrays, None, count),), self.axes_of_inputs)


def _shapes(step: SequenceStep) -> tuple[tuple[int, ...], ...]:
    return tuple(values.shape for values in step.group.inputs.values())

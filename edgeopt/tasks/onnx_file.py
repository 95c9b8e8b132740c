"""A task for a model that exists only as ``.onnx``: it is measured, simplified, quantized and judged.

With enough inputs it is pruned and trained on its own outputs too (``edgeopt.tasks.onnx_training``).

Inputs come from a file (``edgeopt.tasks.onnx_data``); with labels in it, the outputs are judged by these
(``edgeopt.scoring`` says how). Without labels the score is the agreement with the given file's own outputs. Without a
file, inputs are random numbers. The report mentions both. Some of the inputs calibrate int8; only the others select.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.errors import DataError, TaskError
from edgeopt.graph.facts import is_quantized
from edgeopt.graph.given.files import read_given
from edgeopt.graph.given.rows import find_selected_outputs
from edgeopt.graph.given.values import check_inputs, check_outputs, model_inputs
from edgeopt.records.scoring import ScoreKind, ScoreWish
from edgeopt.scoring.facts import check_labels
from edgeopt.task.batch_axes import BatchAxes
from edgeopt.task.protocol import Training
from edgeopt.task.values import as_outputs
from edgeopt.tasks.known_score import KnownScore
from edgeopt.tasks.onnx_data import GivenArrays, describe_inputs, find_shared, load_arrays
from edgeopt.tasks.onnx_training import GIVEN_TRAINING, TrainingFacts, write_training

_RANDOM_SAMPLES = 160
_CALIBRATION_RATIO = 0.2
"""Share of the inputs that calibrates int8."""
_MAX_CALIBRATION_SAMPLES = 384
"""More do not change the ranges."""
_TRAINING_RATIO = 0.6
"""Share of the inputs that trains, if there are enough; those that calibrate are among them."""
_MIN_TRAINING_SAMPLES = 256
"""Fewer do not show a network what it has to do."""
_MIN_SAMPLES = 32
"""Fewest inputs that calibrate, and fewest that select; if there are too few for both, all of them do both."""
_BATCH_SIZE = 32
_CALIBRATION_BATCH_SIZE = 16
"""Smaller, so that few inputs make several batches: the sensitivity study needs batches that did not calibrate."""
_LABELS_KEY = ""
"""Of the labels among the arrays; no input can have this name."""


_Arrays = dict[str, NDArray[Any]]


class OnnxTask(KnownScore):
    """A given ``.onnx`` file and the inputs that it is judged on."""

    kind = "onnx"

    def __init__(self, path: Path, data: Path | None, score_wish: ScoreWish | None = None) -> None:
        self.path = path
        self.score_wish = score_wish or ScoreWish()
        self.labels_source = str(path)
        self.spec = str(path)
        self.name = path.stem
        self.labels: tuple[str, ...] = ()
        self.preprocessing = ""
        self.postprocessing = ""
        self.budgets: dict[str, Any] = {}
        self.students: dict[str, Any] = {}
        given = read_given(path)
        graph = given.model.graph
        check_inputs(path, graph)
        check_outputs(path, graph)
        self.sha256 = hashlib.sha256(given.content).hexdigest()
        """Of the model in one file."""
        self.inputs = describe_inputs(model_inputs(graph))
        self.input_names = tuple(spec.name for spec in self.inputs)
        self.output_names = tuple(value.name for value in graph.output)
        unjudged = self.keep_judged_outputs(find_selected_outputs(graph))
        self.random_inputs = data is None
        arrays = self._draw_random() if data is None else load_arrays(data, self.inputs)
        self.shared_inputs = arrays.shared
        """Inputs without a batch: every sample gets the same."""
        self._check_fixed_batch(data, arrays)
        self.notes = (*self._packed_notes(given.other_files), *unjudged, *arrays.notes)
        """What the report has to say about the file and its data."""
        if arrays.labels is not None:
            self.labels_source = f"{data}: '{arrays.labels_key}'"
            check_labels(arrays.labels, self.labels_source)
        self.training: Training | None = None
        """How candidates are trained; None if the file is not pruned."""
        self.training_arrays: _Arrays = {}
        """The inputs that train."""
        self.untrained_reason = "without --data there are no inputs to train on"
        named = arrays.inputs | ({} if arrays.labels is None else {_LABELS_KEY: arrays.labels})
        self.calibration_arrays, self.arrays = self._split(self._hold_back(named, given.model))
        self.targets = self.arrays.pop(_LABELS_KEY, None)

    @property
    def axes(self) -> BatchAxes:
        """The batch of each input and output: dimension 0; shared inputs have none."""
        return BatchAxes(self.input_axes, (0,) * len(self.output_names))

    @staticmethod
    def nest_outputs(values: Sequence[Any]) -> Any:
        """Return outputs as the score takes them: a single array as it is, several as a tuple."""
        return as_outputs(values)

    @property
    def scored_by(self) -> str:
        """The score in words."""
        words = "accuracy" if self.targets is not None else "agreement with the given file's outputs"
        words = words if self.score_kind is None else self.score_kind.text
        return f"{words} on random inputs" if self.random_inputs else words

    @property
    def calibrated_by(self) -> str:
        """The inputs that calibrate int8, in words."""
        samples = self._count(self.arrays)
        if self.calibration_arrays is self.arrays:
            return (
                f"too few inputs to hold some back: the same {samples} calibrate int8 and select, so its score drop "
                "may look smaller than it is"
            )
        trains = f"{self._count(self.training_arrays)} inputs train, " if self.training_arrays else ""
        calibrates = f"{self._count(self.calibration_arrays)} {'of them' if trains else 'inputs'} calibrate int8"
        return f"{trains}{calibrates}, {samples} others select"

    @property
    def input_axes(self) -> tuple[int | None, ...]:
        """The dimension of each input that is the batch; None for one that all samples share."""
        return tuple(None if name in self.shared_inputs else 0 for name in self.input_names)

    def batches(self) -> list[dict[str, NDArray[Any]]]:
        """Return the inputs that select, in batches."""
        return self._in_batches(self.arrays, _BATCH_SIZE)

    def calibration_batches(self) -> list[dict[str, NDArray[Any]]]:
        """Return the inputs that calibrate int8, in batches."""
        return self._in_batches(self.calibration_arrays, _CALIBRATION_BATCH_SIZE)

    def _in_batches(self, arrays: _Arrays, size: int) -> list[_Arrays]:
        """Return batches of the graph's fixed batch size, or of ``size`` if it has none."""
        count = self._count(arrays)
        step = self.fixed_batch or size
        usable = count - count % step if self.fixed_batch else count
        return [self._take(arrays, slice(start, start + step)) for start in range(0, usable, step)]

    def _count(self, arrays: _Arrays) -> int:
        """Return the number of samples."""
        return next(len(values) for name, values in arrays.items() if name not in self.shared_inputs)

    def _take(self, arrays: _Arrays, rows: Any) -> _Arrays:
        """Return some samples; inputs that all samples share stay whole."""
        return {name: values if name in self.shared_inputs else values[rows] for name, values in arrays.items()}

    def _hold_back(self, arrays: _Arrays, model: onnx.ModelProto) -> _Arrays:
        """Take the inputs that train out of all inputs, if there are enough, and return the others.

        They are taken evenly from the whole file, which may be sorted by class.
        """
        count, batch = self._count(arrays), self.fixed_batch or 1
        wanted = int(count * _TRAINING_RATIO) // batch * batch
        needed = math.ceil(_MIN_TRAINING_SAMPLES / _TRAINING_RATIO)
        if self.random_inputs:
            return arrays
        if is_quantized(model):
            self.untrained_reason = "it is quantized already"
            return arrays
        if any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in model.graph.initializer):
            self.untrained_reason = "its weights are float16, and only float32 is trained: give the float32 file"
            return arrays
        if wanted < _MIN_TRAINING_SAMPLES:
            self.untrained_reason = f"{count} inputs are too few to train on: give {needed} or more"
            return arrays
        trains = np.zeros(count, dtype=bool)
        trains[np.arange(wanted) * count // wanted] = True
        inputs = {name: values for name, values in arrays.items() if name != _LABELS_KEY}
        self.training, self.training_arrays = GIVEN_TRAINING, self._take(inputs, trains)
        return self._take(arrays, ~trains)

    def write_training(self, folder: Path) -> None:
        """Write what the processes that prune and train load (``edgeopt.tasks.onnx_training``)."""
        model = read_given(self.path).model
        facts = TrainingFacts(
            name=self.name,
            inputs=list(self.input_names),
            outputs=[value.name for value in model.graph.output],
            shared=sorted(self.shared_inputs),
            dynamic=self.dynamic_dimensions,
        )
        training = self.training_arrays or self.calibration_arrays
        write_training(folder, model.SerializeToString(), facts, training, self.arrays)

    @property
    def dynamic_dimensions(self) -> dict[str, dict[str, str]]:
        """The dynamic dimensions of each input besides the batch: its name by its number."""
        return {
            spec.name: {
                str(dim): f"size_{number}_{dim}"
                for dim, size in enumerate(spec.dimensions or [])
                if size is None and (dim > 0 or spec.name in self.shared_inputs)
            }
            for number, spec in enumerate(self.inputs)
        }

    def _split(self, arrays: _Arrays) -> tuple[_Arrays, _Arrays]:
        """Return the inputs that calibrate and those that select; if there are too few, all of them as both.

        Those that calibrate are taken evenly from the whole file, which may be sorted by class.
        """
        if self.training_arrays:
            return self._spread(self.training_arrays, _MAX_CALIBRATION_SAMPLES), arrays
        count, batch = self._count(arrays), self.fixed_batch or 1
        wanted = min(_MAX_CALIBRATION_SAMPLES, max(_MIN_SAMPLES, int(count * _CALIBRATION_RATIO)))
        wanted = -(-wanted // batch) * batch
        if wanted > count - max(_MIN_SAMPLES, batch):
            return arrays, arrays  # one object: ``targets`` are taken out of both
        calibrates = np.zeros(count, dtype=bool)
        calibrates[np.arange(wanted) * count // wanted] = True
        inputs = {name: values for name, values in arrays.items() if name != _LABELS_KEY}
        return self._take(inputs, calibrates), self._take(arrays, ~calibrates)

    def _spread(self, arrays: _Arrays, most: int) -> _Arrays:
        """Return at most ``most`` samples, taken evenly."""
        count, batch = self._count(arrays), self.fixed_batch or 1
        wanted = min(count, -(-most // batch) * batch)
        return self._take(arrays, np.arange(wanted) * count // wanted)

    def target_batches(self) -> list[Any] | None:
        """Return the labels in the same batches as the inputs, or None if there are no labels."""
        if self.targets is None:
            return None
        sizes = [self._count(batch) for batch in self.batches()]
        return np.split(self.targets[: sum(sizes)], np.cumsum(sizes)[:-1])

    def _kind_of(self, pairs: Sequence[tuple[Any, Any]], *, by_agreement: bool = False) -> ScoreKind:
        return super()._kind_of(pairs, by_agreement=by_agreement or self.targets is None)

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples that the graph takes at a time; None if it takes any."""
        return next((spec.batch for spec in self.inputs if spec.name not in self.shared_inputs and spec.batch), None)

    def keep_judged_outputs(self, unlike: dict[str, str]) -> tuple[str, ...]:
        """Compare files from now on only by the outputs whose rows are samples; return a note on the others.

        Args:
            unlike: Outputs whose rows are not samples, each with what decides their number.

        Raises:
            TaskError: no output is left.
        """
        self.output_names = tuple(name for name in self.output_names if name not in unlike)
        if not unlike:
            return ()
        listed = ", ".join(f"'{name}' ({reason})" for name, reason in unlike.items())
        if self.output_names:
            return (f"not judged, because their rows are not samples: {listed}",)
        raise TaskError(
            f"{self.path}: the rows of output {listed} are not samples, so files cannot be compared sample by sample. "
            "Export the model without this last step (for a detector: without non-maximum suppression, nms=False), or "
            "write a task in Python whose score() judges it."
        )

    def find_unlike_outputs(self, batches: Sequence[_Arrays], outputs: Sequence[_Arrays]) -> dict[str, str]:
        """Return the judged outputs whose number of rows is not that of the samples, each with both numbers."""
        unlike: dict[str, str] = {}
        for batch, found in zip(batches, outputs, strict=True):
            count = self._count(batch)
            for name in self.output_names:
                rows = found[name].shape[0] if found[name].ndim else None
                if rows != count:
                    shown = "a single number" if rows is None else f"{rows} row{'' if rows == 1 else 's'}"
                    unlike.setdefault(name, f"{shown} for {count} sample{'' if count == 1 else 's'}")
        return unlike

    def row_check_batches(self) -> list[_Arrays]:
        """Return batches of different sizes (of the first ones, if the size is fixed) on which rows are counted."""
        first, *others = self.batches()
        if self.fixed_batch:
            return [first, *others[:3]]
        sizes = sorted({1, self._count(first) // 2 or 1, self._count(first)}, reverse=True)
        return [self._take(first, slice(size)) for size in sizes]

    def _packed_notes(self, other_files: tuple[str, ...]) -> tuple[str, ...]:
        if not other_files:
            return ()
        shown = ", ".join(other_files[:3]) + (f" and {len(other_files) - 3} more" if len(other_files) > 3 else "")
        return (f"packed into one file with the weights of {shown}",)

    def _check_fixed_batch(self, data: Path | None, arrays: GivenArrays) -> None:
        """Check that there is at least one batch for a graph of a fixed batch size, and that it has only one.

        Raises:
            DataError: there are too few samples, or inputs of different batch sizes.
        """
        sizes = {spec.name: spec.batch for spec in self.inputs if spec.name not in self.shared_inputs and spec.batch}
        if len(set(sizes.values())) > 1:
            raise DataError(
                f"{self.path} has inputs of several fixed batch sizes ({sizes}). Export it with a dynamic batch, or "
                "write a task in Python."
            )
        count, batch = self._count(arrays.inputs), self.fixed_batch or 1
        if count < batch:
            raise DataError(
                f"{data}: the model takes batches of exactly {batch}, but there are {count} rows. Give {batch} or "
                "more, or export the model with a dynamic batch."
            )

    def _draw_random(self) -> GivenArrays:
        random = np.random.RandomState(0)
        arrays: _Arrays = {}
        has_dynamic = any(spec.dimensions and spec.batch is None for spec in self.inputs)
        for spec in self.inputs:
            dims = spec.dimensions
            if not dims or None in dims[1:] or not np.issubdtype(spec.dtype, np.floating):
                raise TaskError(
                    f"{self.path}: input '{spec.name}' ({spec.dtype}, shape {spec.shown}) cannot be filled with random "
                    "numbers. Give real inputs with --data inputs.npz (keys: input names, one row per sample)."
                )
            size = spec.batch or 1
            rows = size if has_dynamic and spec.batch else -(-_RANDOM_SAMPLES // size) * size
            arrays[spec.name] = random.standard_normal((rows, *(d or 1 for d in dims[1:]))).astype(spec.dtype)
        return GivenArrays(arrays, None, find_shared(self.inputs, arrays), ())

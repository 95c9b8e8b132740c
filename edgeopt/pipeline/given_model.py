"""A given ``.onnx`` and its inputs, ready to run: one file, and one batch of checked arrays.

In: the paths that the user named. Out: a ``ReadyModel`` for the length of a block.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from numpy.typing import NDArray

from edgeopt.bench.outputs import write_batches
from edgeopt.config.shapes import InputShapes
from edgeopt.errors import InputError, TaskError
from edgeopt.graph.compatibility import find_foreign_operators
from edgeopt.graph.given.files import GivenModel, one_file, read_given
from edgeopt.graph.given.values import check_inputs, model_inputs
from edgeopt.pipeline.boundary import run_user_code
from edgeopt.records.preprocessing import DataOptions
from edgeopt.records.scoring import ScoreWish
from edgeopt.tasks.given.onnx_file import OnnxTask
from edgeopt.tasks.onnx_data.functions import is_function
from edgeopt.tasks.onnx_data.load import load_samples
from edgeopt.tasks.onnx_data.made_up import make_up_inputs
from edgeopt.tasks.onnx_data.rows import settle_axes_of_one
from edgeopt.tasks.onnx_data.samples import GivenSamples
from edgeopt.tasks.onnx_data.specs import InputSpec, declared_axes, describe_inputs

_RUNTIME_FORMAT = ".ort"
"""ONNX Runtime's own format, which only it can read."""


def open_given_task(
    path: Path,
    data: str | None,
    score_wish: ScoreWish | None = None,
    options: DataOptions | None = None,
    batch_size: int | None = None,
) -> OnnxTask:
    """Read a model and its data, without PyTorch.

    Args:
        path: The model.
        data: A file, a folder, or ``file.py:name``; None for random values.
        score_wish: How it is to be scored.
        options: How the data become inputs.
        batch_size: To be measured.

    Raises:
        TaskError, DataError, InputError: see ``OnnxTask``; a TaskError too if the user's function fails.
    """
    if data is not None and is_function(data):
        return run_user_code(data, "the function", OnnxTask, path, data, score_wish, options, batch_size)
    return OnnxTask(path, data, score_wish, options, batch_size)


class ReadyModel(NamedTuple):
    """A model that can be run."""

    path: Path
    """The user's file, or a copy as edgeopt writes files."""
    inputs: Path | None
    """A batch file with one batch; None if there are none."""
    size_bytes: int
    """Of all the user's files."""
    notes: tuple[str, ...]
    sample_shapes: dict[str, tuple[int, ...]]
    """Of the inputs for one sample."""
    no_inputs: str | None = None
    """Why inputs could not be made up."""


@contextmanager
def open_given_model(
    path: Path, inputs: str | None, batch_size: int, *, is_run: bool, shapes: InputShapes | None = None
) -> Iterator[ReadyModel]:
    """Read and check a model and its inputs, and give a block what can be run.

    Args:
        path: The user's file.
        inputs: What the user named: a file, a folder, or ``file.py:name``; None for made-up values.
        batch_size: Samples to take.
        is_run: Whether it has to be run: ONNX Runtime needs all of its operators, and there have to be inputs.
        shapes: Of made-up inputs with dynamic dimensions.

    Raises:
        TaskError: the model cannot be read, has inputs that are not tensors, or has operators that ONNX Runtime lacks.
        DataError: the inputs cannot be read or do not fit.
        InputError: the model has another fixed batch size, the inputs have too few rows, or none can be made up.
    """
    if path.suffix == _RUNTIME_FORMAT:
        unread = "--inputs" if inputs is not None else "--shape" if shapes else None
        if unread is not None:
            raise InputError(f"{path}: {unread} goes with an .onnx file, whose inputs can be checked.")
        yield ReadyModel(path, None, path.stat().st_size, (), {})
        return
    given = read_given(path)
    check_inputs(path, given.model.graph)
    foreign = find_foreign_operators(given.model) if is_run else []
    if foreign:
        raise TaskError(f"{path} uses operators that ONNX Runtime does not have: {', '.join(foreign)}.")
    with ExitStack() as stack:
        model = stack.enter_context(one_file(path, given))
        try:
            taken = take_one_batch(path, given.model, inputs, batch_size, shapes)
        except InputError as error:
            if is_run or inputs is not None:
                raise
            yield ReadyModel(model, None, given.size_bytes, _packed_notes(given), dict(shapes or {}), str(error))
            return
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeopt-inputs-"))
        file = Path(folder) / "inputs.npz"
        write_batches(file, [taken.batch])
        yield ReadyModel(model, file, given.size_bytes, (*_packed_notes(given), *taken.notes), taken.sample_shapes)


def _packed_notes(given: GivenModel) -> tuple[str, ...]:
    first, *others = given.other_files or ("",)
    more = f" and {len(others)} more" if others else ""
    how = "in two files, with" if given.content is None else "as one file, packed with"
    return (f"run {how} the weights of {first}{more}",) if first else ()


class TakenBatch(NamedTuple):
    """One batch for a model."""

    batch: dict[str, NDArray[Any]]
    sample_shapes: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]


def take_one_batch(
    path: Path, model: onnx.ModelProto, inputs: str | None, batch_size: int, shapes: InputShapes | None = None
) -> TakenBatch:
    """Return the first samples of the user's data and notes on casts, or made-up inputs and a note on these.

    Of samples of several shapes the first ones are taken.

    Raises:
        DataError, InputError: see ``open_given_model``.
    """
    specs = describe_inputs(model_inputs(model.graph))
    axes = settle_axes_of_one(specs, declared_axes(specs))
    if inputs is None:
        made = make_up_inputs(model.graph, specs, axes, batch_size, shapes or {})
        batch, notes = made.arrays, tuple(filter(None, (made.note,)))
    elif shapes:
        raise InputError("--shape is for made-up inputs; --inputs has its own shapes. Leave one of them out.")
    else:
        samples = _load(inputs, specs)
        axes, notes, first = samples.axes, samples.notes, samples.groups[0]
        if first.samples < batch_size:
            raise InputError(f"{inputs}: {_rows_of(first.inputs)} {first.samples} rows; the batch needs {batch_size}.")
        batch = first.cut(0, batch_size, axes).inputs
    for spec in specs:
        size = spec.size(axes[spec.name])
        if size is not None and size != batch_size:
            raise InputError(
                f"{path}: input '{spec.name}' has a fixed batch size of {size}, not {batch_size}. Give "
                f"--batch-size {size}."
            )
    one = {name: tuple(values.shape) for name, values in batch.items()}
    for spec in specs:
        axis = axes[spec.name]
        if axis is not None and spec.size(axis) is None:
            one[spec.name] = (*one[spec.name][:axis], 1, *one[spec.name][axis + 1 :])
    return TakenBatch(batch, one, notes)


def _load(inputs: str, specs: Sequence[InputSpec]) -> GivenSamples:
    if is_function(inputs):
        return run_user_code(inputs, "the function", load_samples, inputs, specs, judged=False)
    return load_samples(inputs, specs, judged=False)


def _rows_of(arrays: dict[str, NDArray[Any]]) -> str:
    return f"array '{next(iter(arrays))}' has" if len(arrays) == 1 else "the arrays have"

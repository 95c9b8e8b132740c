"""A given ``.onnx`` and its inputs, ready to run: one file, and one batch of checked arrays.

In: the paths that the user named. Out: a ``ReadyModel`` for the length of a block.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from numpy.typing import NDArray

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import InputError, TaskError
from edgeopt.graph.compatibility import find_foreign_operators
from edgeopt.graph.given.files import GivenModel, one_file, read_given
from edgeopt.graph.given.values import check_inputs, model_inputs
from edgeopt.tasks.onnx_data import describe_inputs, load_arrays

_RUNTIME_FORMAT = ".ort"
"""ONNX Runtime's own format, which only it can read."""


class ReadyModel(NamedTuple):
    """A model that can be run."""

    path: Path
    """Of one file: the user's, or a packed copy."""
    inputs: Path | None
    """A batch file with one batch; None for random values."""
    size_bytes: int
    """Of all the user's files."""
    notes: tuple[str, ...]
    sample_shapes: dict[str, tuple[int, ...]]
    """Of the user's arrays for one sample; empty without them."""


@contextmanager
def open_given_model(path: Path, inputs: Path | None, batch_size: int, *, is_run: bool) -> Iterator[ReadyModel]:
    """Read and check a model and its inputs, and give a block what can be run.

    Args:
        path: The user's file.
        inputs: The user's ``.npz`` or ``.npy``; None for random values.
        batch_size: Rows to take from it.
        is_run: Whether ONNX Runtime has to have all of its operators.

    Raises:
        TaskError: the model cannot be read, has inputs that are not tensors, or has operators that ONNX Runtime lacks.
        DataError: the inputs cannot be read or do not fit.
        InputError: the model has another fixed batch size, or the inputs have too few rows.
    """
    if path.suffix == _RUNTIME_FORMAT:
        if inputs is not None:
            raise InputError(f"{path}: --inputs goes with an .onnx file, whose inputs can be checked.")
        yield ReadyModel(path, None, path.stat().st_size, (), {})
        return
    given = read_given(path)
    check_inputs(path, given.model.graph)
    foreign = find_foreign_operators(given.model) if is_run else []
    if foreign:
        raise TaskError(f"{path} uses operators that ONNX Runtime does not have: {', '.join(foreign)}.")
    with ExitStack() as stack:
        model = stack.enter_context(one_file(path, given))
        notes, file = _packed_notes(given), None
        shapes: dict[str, tuple[int, ...]] = {}
        if inputs is not None:
            taken = take_one_batch(path, given.model, inputs, batch_size)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeopt-inputs-"))
            file, notes, shapes = Path(folder) / "inputs.npz", (*notes, *taken.notes), taken.sample_shapes
            write_batches(file, [taken.batch])
        yield ReadyModel(model, file, given.size_bytes, notes, shapes)


def _packed_notes(given: GivenModel) -> tuple[str, ...]:
    first, *others = given.other_files or ("",)
    more = f" and {len(others)} more" if others else ""
    return (f"run as one file, packed with the weights of {first}{more}",) if first else ()


class TakenBatch(NamedTuple):
    """The first rows of the user's arrays."""

    batch: dict[str, NDArray[Any]]
    sample_shapes: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]


def take_one_batch(path: Path, model: onnx.ModelProto, inputs: Path, batch_size: int) -> TakenBatch:
    """Return the first rows of the user's arrays, and notes on casts.

    Raises:
        DataError, InputError: see ``open_given_model``.
    """
    specs = describe_inputs(model_inputs(model.graph))
    arrays = load_arrays(inputs, specs, judged=False)
    batch, shapes = dict(arrays.inputs), {name: values.shape for name, values in arrays.inputs.items()}
    for spec in specs:
        if spec.name in arrays.shared:
            continue
        if spec.batch is not None and spec.batch != batch_size:
            raise InputError(
                f"{path}: input '{spec.name}' has a fixed batch size of {spec.batch}, not {batch_size}. Give "
                f"--batch-size {spec.batch}."
            )
        values = batch[spec.name]
        if len(values) < batch_size:
            raise InputError(f"{inputs}: array '{spec.name}' has {len(values)} rows; the batch needs {batch_size}.")
        batch[spec.name], shapes[spec.name] = values[:batch_size], (spec.batch or 1, *values.shape[1:])
    return TakenBatch(batch, shapes, arrays.notes)

"""Checks that a given model's inputs and outputs are tensors of numbers that numpy knows."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from edgeopt.errors import TaskError

NUMBERS = frozenset(
    {
        TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL,
        TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
        TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
    }
)  # fmt: skip
"""Types of elements that numpy has too, so that they can be given, run and compared."""
_ZIP_MAP_ADVICE = "Export without ZipMap (skl2onnx: options={'zipmap': False}), so that it is a tensor"
_ADVICE = {
    "sequence_type": "Export each of its tensors as one of its own, or join them with ConcatFromSequence",
    "map_type": _ZIP_MAP_ADVICE,
    "optional_type": "Export the model for the case in which it is there",
    "sparse_tensor_type": "Export it as a dense tensor",
}


def model_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs of a graph without the weights that old files list among them."""
    weights = {tensor.name for tensor in graph.initializer} | {one.values.name for one in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in weights]


def check_inputs(path: Path, graph: onnx.GraphProto) -> None:
    """Check that every input can be given as an array.

    Raises:
        TaskError: there is none, or one is something else than a tensor of numbers; the message says what.
    """
    if not model_inputs(graph):
        raise TaskError(f"{path} has no inputs: it computes a constant. Export the model with its inputs.")
    for value in model_inputs(graph):
        _check(path, "input", value)


def check_outputs(path: Path, graph: onnx.GraphProto) -> None:
    """Check that every output can be compared as an array.

    Raises:
        TaskError: there is none, or one is something else than a tensor of numbers; the message says what.
    """
    if not graph.output:
        raise TaskError(f"{path} has no outputs. Export the model with its outputs.")
    for value in graph.output:
        _check(path, "output", value)


def _check(path: Path, role: str, value: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    element = value.type.tensor_type.elem_type
    if kind is None or (kind == "tensor_type" and element in (*NUMBERS, TensorProto.UNDEFINED)):
        return
    raise TaskError(
        f"{path}: {role} '{value.name}' is {describe_type(value.type)}; edgeopt takes tensors of numbers. "
        f"{_advise(role, value.type)}."
    )


def _advise(role: str, kind: onnx.TypeProto) -> str:
    name = kind.WhichOneof("value")
    if name == "sequence_type" and "map" in describe_type(kind):
        return _ZIP_MAP_ADVICE
    if name != "tensor_type":
        return _ADVICE.get(name or "", "Export it as a tensor")
    if kind.tensor_type.elem_type == TensorProto.STRING:
        return (
            "Take the step that reads text (a tokenizer, an encoder of categories) out of the model; give its numbers"
            if role == "input"
            else "Export the model without it, or with class numbers instead of names (skl2onnx: train on integers)"
        )
    if kind.tensor_type.elem_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return "Export the real and the imaginary part as an output each, or stacked in a last dimension"
    return f"numpy has no such type: export the model with a Cast {'from' if role == 'input' else 'to'} float32 there"


def describe_type(kind: onnx.TypeProto) -> str:
    """Put a type into words: ``float32`` for a tensor, ``a sequence of maps from int64 to float32``."""
    name = kind.WhichOneof("value")
    match name:
        case "tensor_type":
            return name_element(kind.tensor_type.elem_type)
        case "sparse_tensor_type":
            return f"a sparse tensor of {name_element(kind.sparse_tensor_type.elem_type)}"
        case "sequence_type":
            return f"a sequence of {_plural(kind.sequence_type.elem_type)}"
        case "map_type":
            return f"a map {_from_to(kind)}"
        case "optional_type":
            return f"optional ({describe_type(kind.optional_type.elem_type)})"
    return "of an unknown type"


def name_element(element: int) -> str:
    """Return numpy's name of an element type, or ONNX's in lower case if numpy has none; ``unknown`` without one."""
    if element in NUMBERS:
        return str(helper.tensor_dtype_to_np_dtype(element).name)
    if element == TensorProto.STRING:
        return "strings"
    if element == TensorProto.UNDEFINED or element not in TensorProto.DataType.values():
        return "unknown"
    return str(TensorProto.DataType.Name(element)).lower()


def _plural(kind: onnx.TypeProto) -> str:
    if kind.WhichOneof("value") == "map_type":
        return f"maps {_from_to(kind)}"
    described = describe_type(kind)
    return f"{described} tensors" if kind.WhichOneof("value") == "tensor_type" else described


def _from_to(kind: onnx.TypeProto) -> str:
    return f"from {name_element(kind.map_type.key_type)} to {describe_type(kind.map_type.value_type)}"

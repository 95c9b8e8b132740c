"""Nodes that add a mask to the values of a softmax, such as attention's: int8 cannot hold both.

A mask is minus infinity, or a number such as -1e4, where a position does not count; it may be written with the opposite
sign and subtracted. A range that holds it rounds every other value to the same number, or is not finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeopt.graph.model import find_consumers
from edgeopt.model_files.tensors import tensor_values

_SMALLEST_MASK = 1e3
"""Values that people write in masks are 1e4, 1e9, the largest number of a type, or infinity, most with a minus."""
_CARRIES_MASK = (
    *("Add", "Sub", "Mul", "Div", "Where", "Cast", "Trilu", "Min", "Max", "Identity"),
    *("Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Gather", "Concat", "Tile"),
)


def find_mask_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that write or read a value with a mask in it, up to the softmax and with it.

    Args:
        graph: A float graph whose nodes have names.
    """
    readers, found = find_consumers(graph), set[str]()
    for mask in _find_masks(graph):
        seen, waiting, reaches_softmax = {node.name for node in graph.node if mask in node.output}, [mask], False
        while waiting:
            for user, _ in readers.get(waiting.pop(), []):
                reaches_softmax = reaches_softmax or user.op_type in ("Softmax", "LogSoftmax")
                waiting += user.output if user.op_type in _CARRIES_MASK and user.name not in seen else []
                seen.add(user.name)
        found |= seen if reaches_softmax else set()
    return [node.name for node in graph.node if node.name in found]


def find_mask_values(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the names of the masks of ``find_mask_nodes``, and of the values before the softmax that hold them."""
    nodes = [node for node in graph.node if node.name in set(find_mask_nodes(graph))]
    written = (name for node in nodes if node.op_type in (*_CARRIES_MASK, "ConstantOfShape") for name in node.output)
    return frozenset((*written, *(set(_find_masks(graph)) if nodes else ())))


def _find_masks(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield constants with a number that is far from any other value of a network, if an operator can pass it on."""
    passed_on = {name for node in graph.node if node.op_type in _CARRIES_MASK for name in node.input}
    for tensor in graph.initializer:
        if tensor.name in passed_on and _is_far(tensor_values(tensor)):
            yield tensor.name
    for node in graph.node:
        filled = next((one.t for one in node.attribute if one.name == "value"), None)
        if node.op_type == "ConstantOfShape" and filled is not None and _is_far(numpy_helper.to_array(filled)):
            yield node.output[0]


def _is_far(values: NDArray[Any]) -> bool:
    return bool(values.dtype.kind == "f" and values.size and max(values.max(), -values.min()) >= _SMALLEST_MASK)

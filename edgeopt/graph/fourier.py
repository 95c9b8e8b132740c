"""Writes short-time Fourier transforms as convolutions, whose weights are computed when the file is loaded.

ONNX Runtime's ``STFT`` transforms one frame after the other. A convolution with the sines and cosines of the transform
computes the same numbers (off by 5e-7 of the largest) with the kernels of matrix products: 1.3 to 1.7 times faster for
512 and 256 samples a frame, and 6 to 12 times for sizes that are no powers of two, such as 320, 400 or 480, where the
fast transform needs a detour, which costs accuracy too (``benchmarks/transforms.py``). Its weights are ``size * (size +
2)`` numbers, more than the rest of many a file, so they are written as a few operators on constants, which constant
folding computes once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.model import (
    Arrays,
    drop_unused_initializers,
    read_initializers,
    replace_nodes,
    unused_name,
    used_names,
)
from edgeopt.model_files.inferred_shapes import infer_shapes

_MAX_SIZE = 2048
"""Samples of a frame: the work of the convolution grows with their square."""
_MAX_POWER_OF_TWO = 512
"""From 1,024 on, the fast transform is faster."""
_NO_NAME = ""


def write_transforms_as_convolutions(model: onnx.ModelProto) -> int:
    """Replace each ``STFT`` of real samples in frames of a constant size, in place; return their number."""
    graph = model.graph
    if all(node.op_type != "STFT" for node in graph.node):
        return 0
    constants, types, taken = _constants(graph), _types(model), used_names(graph)
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        size = _frame_size(node, constants) if node.op_type == "STFT" else None
        if size is None or types.get(node.output[0]) != TensorProto.FLOAT:
            nodes.append(node)
            continue
        count += 1
        writer = _Writer(graph, taken, prefix=node.output[0])
        writer.write(node, size, step=int(constants[node.input[1]].item()))
        nodes.extend(writer.nodes)
    if count:
        replace_nodes(graph, nodes)
        drop_unused_initializers(graph)
    return count


def _constants(graph: onnx.GraphProto) -> Arrays:
    """Return the values of initializers and of ``Constant`` nodes."""
    found = dict(read_initializers(graph))
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def _frame_size(node: onnx.NodeProto, constants: Arrays) -> int | None:
    """Return the samples of a frame if a convolution is faster; None if it isn't, or if they are not constant."""
    _, step, window, length = (*node.input, _NO_NAME, _NO_NAME)[:4]  # the last two may be left out
    is_onesided = all(one.i == 1 for one in node.attribute if one.name == "onesided")
    if not is_onesided or step not in constants:
        return None
    if length in constants:
        size = int(constants[length].item())
    elif window in constants:
        size = int(constants[window].size)
    else:
        return None
    if window in constants and constants[window].size != size:  # a shorter one would be stretched without a word
        return None
    is_power_of_two = size & (size - 1) == 0
    return size if 2 <= size <= (_MAX_POWER_OF_TWO if is_power_of_two else _MAX_SIZE) else None


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of each value that can be inferred."""
    try:
        graph = infer_shapes(model)
    except onnx.shape_inference.InferenceError:  # a declared shape contradicts the graph
        return {}
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}


class _Writer:
    """Writes the nodes that replace one transform.

    Args:
        graph: Gets the constants.
        taken: Names in use; gets those of new values.
        prefix: Of new names.
    """

    def __init__(self, graph: onnx.GraphProto, taken: set[str], prefix: str) -> None:
        self.graph = graph
        self.taken = taken
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []

    def write(self, node: onnx.NodeProto, size: int, step: int) -> None:
        """Write the convolution, and what brings its output into the form of a transform's."""
        bins = size // 2 + 1
        weights = self._weights(size, bins, window=node.input[2] if len(node.input) > 2 else _NO_NAME)
        signal = self._add("Reshape", node.input[0], self._constant(np.array([0, 1, -1])))
        values = self._add("Conv", signal, weights, strides=[step])
        halves = self._add("Reshape", values, self._constant(np.array([0, 2, bins, -1])))
        self.nodes.append(helper.make_node("Transpose", [halves], [node.output[0]], name=node.name, perm=[0, 3, 2, 1]))

    def _weights(self, size: int, bins: int, window: str) -> str:
        """Write the operators that compute the weights ``(2 * bins, 1, size)``: cosines, then negative sines.

        The product of frequency and time is taken modulo the size, which is exact, so that no angle is above 2 pi.
        """
        zero, one, count = (self._constant(np.float32(value)) for value in (0, 1, size))
        times = self._add("Range", zero, count, one)
        frequencies = self._add("Range", zero, self._constant(np.float32(bins)), one)
        column = self._add("Unsqueeze", frequencies, self._constant(np.array([1])))
        turns = self._add("Mod", self._add("Mul", column, times), count, fmod=1)
        angles = self._add("Mul", turns, self._constant(np.float32(2 * np.pi / size)))
        waves = self._add("Concat", self._add("Cos", angles), self._add("Neg", self._add("Sin", angles)), axis=0)
        if window != _NO_NAME:
            waves = self._add("Mul", waves, window)
        return self._add("Unsqueeze", waves, self._constant(np.array([1])))

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = self._new_name()
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def _constant(self, value: NDArray[Any] | np.float32) -> str:
        name = self._new_name()
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _new_name(self) -> str:
        return unused_name(f"{self.prefix}_wave", self.taken)

"""Hard swishes in int8: their input needs no steps in the range in which the result is zero.

The steps saved there make the others finer, and the hard sigmoid needs no rounding of its own:

    hard_swish(x) = x * clip(a * x + 1/2, 0, 1)             zero below -1/(2a)
    q = QuantizeLinear(x, scale=1 / (2 * a * z), zero=z)    so that q = 0 stands for -1/(2a), q = 2z for +1/(2a)
    DequantizeLinear(Clip(q, max=2z), scale=1 / (2z), zero=0) = clip(a * x + 1/2, 0, 1)

A clip of bytes is the quickest operator; ``z`` is the largest value for which ``q`` covers the range of x. A SiLU is
already a look-up and a product; clipping its input where the result rounds to zero cost 1 dB on a trained network.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.graph.model import Arrays, drop_unused_initializers, find_consumers, read_initializers, replace_nodes
from edgeopt.graph.quantization.hard_sigmoid import DEFAULT_ALPHA, DEFAULT_BETA

_MAX_UINT8 = 255
_HARD_SWISH_BETA = 0.5


class _HardSwish(NamedTuple):
    """A hard swish between quantize and dequantize nodes that is the only reader of its input."""

    quantizer: onnx.NodeProto
    dequantizer: onnx.NodeProto
    hard_sigmoid: onnx.NodeProto
    sigmoid_quantizer: onnx.NodeProto
    sigmoid_dequantizer: onnx.NodeProto


def write_hard_swishes(model: onnx.ModelProto) -> int:
    """Narrow the input range of every hard swish (uint8) and write its hard sigmoid as a clip, in place.

    Returns:
        The number of hard swishes.
    """
    graph = model.graph
    constants = read_initializers(graph)
    hard_swishes = [hard_swish for node in graph.node if (hard_swish := _match_hard_swish(node, graph)) is not None]
    removed: set[str] = set()
    count = 0
    for hard_swish in hard_swishes:
        if _is_uint8(hard_swish.quantizer, constants) and _write_as_clip(hard_swish, graph, constants):
            removed |= {hard_swish.hard_sigmoid.name, hard_swish.sigmoid_quantizer.name}
            count += 1
    if removed:
        replace_nodes(graph, [node for node in graph.node if node.name not in removed])
        drop_unused_initializers(graph)
    return count


def _match_hard_swish(node: onnx.NodeProto, graph: onnx.GraphProto) -> _HardSwish | None:
    """Return the hard swish around a hard sigmoid; None if there is none."""
    if node.op_type != "HardSigmoid":
        return None
    producers = {name: producer for producer in graph.node for name in producer.output}
    readers = {name: [reader for reader, _ in uses] for name, uses in find_consumers(graph).items()}
    dequantizer = producers.get(node.input[0])
    quantizer = producers.get(dequantizer.input[0]) if dequantizer is not None else None
    if dequantizer is None or quantizer is None or dequantizer.op_type != "DequantizeLinear":
        return None
    others = [reader for reader in readers[node.input[0]] if reader is not node]
    is_read_once = readers[quantizer.output[0]] == [dequantizer]
    if quantizer.op_type != "QuantizeLinear" or not is_read_once or [reader.op_type for reader in others] != ["Mul"]:
        return None
    chain = [node]
    for op_type in ("QuantizeLinear", "DequantizeLinear", "Mul"):
        following = readers.get(chain[-1].output[0], [])
        if [reader.op_type for reader in following] != [op_type]:
            return None
        chain.append(following[0])
    return _HardSwish(quantizer, dequantizer, node, chain[1], chain[2]) if chain[-1] is others[0] else None


def _is_uint8(quantizer: onnx.NodeProto, constants: Arrays) -> bool:
    zero = constants.get(quantizer.input[2]) if len(quantizer.input) > 2 else None
    return zero is not None and zero.dtype == np.uint8


def _write_as_clip(hard_swish: _HardSwish, graph: onnx.GraphProto, constants: Arrays) -> bool:
    """Write a hard swish's hard sigmoid as a clip of its quantized input; return False if that cannot be done."""
    attributes = {attribute.name: attribute.f for attribute in hard_swish.hard_sigmoid.attribute}
    alpha, beta = attributes.get("alpha", DEFAULT_ALPHA), attributes.get("beta", DEFAULT_BETA)
    if beta != _HARD_SWISH_BETA or alpha <= 0:
        return False
    end = _HARD_SWISH_BETA / alpha
    scale, old_zero = (float(constants[name]) for name in hard_swish.quantizer.input[1:3])
    zero = math.floor(_MAX_UINT8 * end / (max(0.0, (_MAX_UINT8 - old_zero) * scale) + end))
    if zero < 1:
        return False
    _set_quantization(
        graph, (hard_swish.quantizer, hard_swish.dequantizer), end / zero, zero, hard_swish.quantizer.name
    )
    values = hard_swish.quantizer.output[0]
    name = hard_swish.hard_sigmoid.name
    if 2 * zero < _MAX_UINT8:
        graph.initializer.append(numpy_helper.from_array(np.asarray(2 * zero, np.uint8), f"{name}_most"))
        clip = helper.make_node(
            "Clip", [values, "", f"{name}_most"], [hard_swish.sigmoid_quantizer.output[0]], f"{name}_clip"
        )
        index = next(index for index, node in enumerate(graph.node) if node is hard_swish.hard_sigmoid)
        graph.node.insert(index, clip)
    else:
        hard_swish.sigmoid_dequantizer.input[0] = values
    _set_quantization(graph, (hard_swish.sigmoid_dequantizer,), _HARD_SWISH_BETA / zero, 0, name)
    return True


def _set_quantization(
    graph: onnx.GraphProto, nodes: tuple[onnx.NodeProto, ...], scale: float, zero: int, name: str
) -> None:
    """Give quantize and dequantize nodes their own scale and zero point."""
    names = [f"{name}_own_scale", f"{name}_own_zero"]
    graph.initializer.append(numpy_helper.from_array(np.asarray(scale, np.float32), names[0]))
    graph.initializer.append(numpy_helper.from_array(np.asarray(zero, np.uint8), names[1]))
    for node in nodes:
        node.input[1:] = names

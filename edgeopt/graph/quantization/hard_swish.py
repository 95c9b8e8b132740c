"""Hard swishes in int8: what they read needs no range where the result is zero.

The steps that are saved there make the rest finer, and give the gate without a further rounding:

    hard_swish(x) = x * clip(a * x + 1/2, 0, 1)             zero below -1/(2a)
    q = QuantizeLinear(x, scale=1 / (2 * a * z), zero=z)    so that q = 0 stands for -1/(2a), q = 2z for +1/(2a)
    DequantizeLinear(Clip(q, max=2z), scale=1 / (2z), zero=0) = clip(a * x + 1/2, 0, 1)

A clip of bytes is the quickest operator there is; ``z`` is the largest with which ``q`` holds the range of x. A SiLU
is a look-up and a product as it is: cutting its input where the result rounds to zero cost 1 dB on a trained network.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.graph.model import Arrays, arrays, consumers, drop_unused_initializers, replace_nodes

_LEVELS = 255
HALF = 0.5
DEFAULT_ALPHA, DEFAULT_BETA = 0.2, 0.5


class _Swish(NamedTuple):
    """A swish between quantize and dequantize nodes, where nothing else reads what it reads."""

    quantizer: onnx.NodeProto
    dequantizer: onnx.NodeProto
    gate: onnx.NodeProto
    gate_quantizer: onnx.NodeProto
    gate_dequantizer: onnx.NodeProto


def write_hard_swishes(model: onnx.ModelProto) -> int:
    """Narrow what every hard swish with uint8 input reads and write its gate as a clip, in place; count them."""
    graph = model.graph
    constants = arrays(graph)
    found = [swish for node in graph.node if (swish := _match(node, graph)) is not None]
    gone: set[str] = set()
    count = 0
    for swish in found:
        if _is_uint8(swish.quantizer, constants) and _write_as_clip(swish, graph, constants):
            gone |= {swish.gate.name, swish.gate_quantizer.name}
            count += 1
    if gone:
        replace_nodes(graph, [node for node in graph.node if node.name not in gone])
        drop_unused_initializers(graph)
    return count


def _match(node: onnx.NodeProto, graph: onnx.GraphProto) -> _Swish | None:
    """Return the swish around a hard sigmoid, None where there is none."""
    if node.op_type != "HardSigmoid":
        return None
    producers = {name: one for one in graph.node for name in one.output}
    readers = {name: [one for one, _ in uses] for name, uses in consumers(graph).items()}
    dequantizer = producers.get(node.input[0])
    quantizer = producers.get(dequantizer.input[0]) if dequantizer is not None else None
    if dequantizer is None or quantizer is None or dequantizer.op_type != "DequantizeLinear":
        return None
    others = [one for one in readers[node.input[0]] if one is not node]
    alone = readers[quantizer.output[0]] == [dequantizer]
    if quantizer.op_type != "QuantizeLinear" or not alone or [one.op_type for one in others] != ["Mul"]:
        return None
    chain = [node]
    for kind in ("QuantizeLinear", "DequantizeLinear", "Mul"):
        following = readers.get(chain[-1].output[0], [])
        if [one.op_type for one in following] != [kind]:
            return None
        chain.append(following[0])
    return _Swish(quantizer, dequantizer, node, chain[1], chain[2]) if chain[-1] is others[0] else None


def _is_uint8(quantizer: onnx.NodeProto, constants: Arrays) -> bool:
    zero = constants.get(quantizer.input[2]) if len(quantizer.input) > 2 else None
    return zero is not None and zero.dtype == np.uint8


def _write_as_clip(swish: _Swish, graph: onnx.GraphProto, constants: Arrays) -> bool:
    """Write a hard swish's gate as a clip of its quantized input; say whether it could be."""
    given = {attribute.name: attribute.f for attribute in swish.gate.attribute}
    alpha, beta = given.get("alpha", DEFAULT_ALPHA), given.get("beta", DEFAULT_BETA)
    if beta != HALF or alpha <= 0:
        return False
    end = HALF / alpha
    scale, old = (float(constants[name]) for name in swish.quantizer.input[1:3])
    zero = math.floor(_LEVELS * end / (max(0.0, (_LEVELS - old) * scale) + end))
    if zero < 1:
        return False
    _set(graph, (swish.quantizer, swish.dequantizer), end / zero, zero, swish.quantizer.name)
    values = swish.quantizer.output[0]
    name = swish.gate.name
    if 2 * zero < _LEVELS:
        graph.initializer.append(numpy_helper.from_array(np.asarray(2 * zero, np.uint8), f"{name}_most"))
        clip = helper.make_node("Clip", [values, "", f"{name}_most"], [swish.gate_quantizer.output[0]], f"{name}_clip")
        place = next(index for index, node in enumerate(graph.node) if node is swish.gate)
        graph.node.insert(place, clip)
    else:
        swish.gate_dequantizer.input[0] = values
    _set(graph, (swish.gate_dequantizer,), HALF / zero, 0, name)
    return True


def _set(graph: onnx.GraphProto, nodes: tuple[onnx.NodeProto, ...], scale: float, zero: int, name: str) -> None:
    """Give quantize and dequantize nodes a scale and zero point of their own."""
    names = [f"{name}_own_scale", f"{name}_own_zero"]
    graph.initializer.append(numpy_helper.from_array(np.asarray(scale, np.float32), names[0]))
    graph.initializer.append(numpy_helper.from_array(np.asarray(zero, np.uint8), names[1]))
    for node in nodes:
        node.input[1:] = names

"""Swishes in int8: x times a sigmoid of x, where values far below zero are as good as zero.

What a swish reads needs no range below the point where its result rounds to zero. The steps that are saved there make
the rest finer, and give the hard swish its gate without a further rounding:

    hard_swish(x) = x * clip(a * x + 1/2, 0, 1)             zero below -1/(2a)
    q = QuantizeLinear(x, scale=1 / (2 * a * z), zero=z)    so that q = 0 stands for -1/(2a), q = 2z for +1/(2a)
    DequantizeLinear(Clip(q, max=2z), scale=1 / (2z), zero=0) = clip(a * x + 1/2, 0, 1)

A clip of bytes is the quickest operator there is; ``z`` is the largest with which ``q`` holds the range of x.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.graph.files import Arrays, arrays, consumers, drop_unused_initializers, replace_nodes

LEVELS = 255
HALF = 0.5
DEFAULT_ALPHA, DEFAULT_BETA = 0.2, 0.5


class _Swish(NamedTuple):
    """A swish between quantize and dequantize nodes, where nothing else reads what it reads."""

    quantizer: onnx.NodeProto
    dequantizer: onnx.NodeProto
    gate: onnx.NodeProto
    product: onnx.NodeProto
    gate_quantizer: onnx.NodeProto
    gate_dequantizer: onnx.NodeProto
    result_quantizer: onnx.NodeProto


def write_swishes(model: onnx.ModelProto) -> int:
    """Narrow what every swish with uint8 input reads, and write hard swishes' gates as clips, in place; count them."""
    graph = model.graph
    constants = arrays(graph)
    found = [swish for node in graph.node if (swish := _match(node, graph)) is not None]
    gone: set[str] = set()
    count = 0
    for swish in found:
        if not _is_uint8(swish, constants):
            continue
        if swish.gate.op_type == "Sigmoid":
            count += _narrow(swish, graph, constants)
        elif _write_as_clip(swish, graph, constants):
            gone |= {swish.gate.name, swish.gate_quantizer.name}
            count += 1
    if gone:
        replace_nodes(graph, [node for node in graph.node if node.name not in gone])
    if count:
        drop_unused_initializers(graph)
    return count


def _match(node: onnx.NodeProto, graph: onnx.GraphProto) -> _Swish | None:
    """Return the swish around a sigmoid or hard sigmoid, None where there is none."""
    if node.op_type not in ("Sigmoid", "HardSigmoid"):
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
    result = readers.get(others[0].output[0], [])
    if chain[-1] is not others[0] or [one.op_type for one in result] != ["QuantizeLinear"]:
        return None
    return _Swish(quantizer, dequantizer, node, others[0], chain[1], chain[2], result[0])


def _is_uint8(swish: _Swish, constants: Arrays) -> bool:
    return all(
        len(one.input) > 2 and one.input[2] in constants and constants[one.input[2]].dtype == np.uint8
        for one in (swish.quantizer, swish.result_quantizer)
    )


def _narrow(swish: _Swish, graph: onnx.GraphProto, constants: Arrays) -> bool:
    """Let the input's range begin where x * sigmoid(x) is half a step of the result; say whether it began below."""
    low, high = _range(swish.quantizer, constants)
    least = -1.0
    while least > low and least / (1 + math.exp(-least)) < -HALF * float(constants[swish.result_quantizer.input[1]]):
        least -= 0.125
    if least <= low or high <= 0:
        return False
    scale = (high - least) / LEVELS
    _set(graph, (swish.quantizer, swish.dequantizer), scale, round(-least / scale), swish.quantizer.name)
    return True


def _write_as_clip(swish: _Swish, graph: onnx.GraphProto, constants: Arrays) -> bool:
    """Write a hard swish's gate as a clip of its quantized input; say whether it could be."""
    given = {attribute.name: attribute.f for attribute in swish.gate.attribute}
    alpha, beta = given.get("alpha", DEFAULT_ALPHA), given.get("beta", DEFAULT_BETA)
    if beta != HALF or alpha <= 0:
        return False
    end = HALF / alpha
    zero = math.floor(LEVELS * end / (max(0.0, _range(swish.quantizer, constants)[1]) + end))
    if zero < 1:
        return False
    _set(graph, (swish.quantizer, swish.dequantizer), end / zero, zero, swish.quantizer.name)
    values = swish.quantizer.output[0]
    name = swish.gate.name
    if 2 * zero < LEVELS:
        graph.initializer.append(numpy_helper.from_array(np.asarray(2 * zero, np.uint8), f"{name}_most"))
        clip = helper.make_node("Clip", [values, "", f"{name}_most"], [swish.gate_quantizer.output[0]], f"{name}_clip")
        place = next(index for index, node in enumerate(graph.node) if node is swish.gate)
        graph.node.insert(place, clip)
    else:
        swish.gate_dequantizer.input[0] = values
    _set(graph, (swish.gate_dequantizer,), HALF / zero, 0, name)
    return True


def _range(quantizer: onnx.NodeProto, constants: Arrays) -> tuple[float, float]:
    scale, zero = (float(constants[name]) for name in quantizer.input[1:3])
    return -zero * scale, (LEVELS - zero) * scale


def _set(graph: onnx.GraphProto, nodes: tuple[onnx.NodeProto, ...], scale: float, zero: int, name: str) -> None:
    """Give quantize and dequantize nodes a scale and zero point of their own."""
    names = [f"{name}_own_scale", f"{name}_own_zero"]
    graph.initializer.append(numpy_helper.from_array(np.asarray(scale, np.float32), names[0]))
    graph.initializer.append(numpy_helper.from_array(np.asarray(zero, np.uint8), names[1]))
    for node in nodes:
        node.input[1:] = names

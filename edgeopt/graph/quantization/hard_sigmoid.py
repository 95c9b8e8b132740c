"""Hard sigmoids in int8: a hard sigmoid is a line cut at 0 and 1, and so is rounding to uint8.

    HardSigmoid(x) = max(0, min(1, a * x + b))
    q = QuantizeLinear(x, scale=1 / (255 * a), zero=round(255 * b))
    DequantizeLinear(q, scale=1 / 255, zero=0) = HardSigmoid(x)

up to half a step of 1/255. So the node goes: where a convolution alone feeds it, its own output is rounded that way.
The product of a hard-swish or a gate, which reads the result, then stays in integers.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.graph.model import consumers, drop_unused_initializers, replace_nodes

_STEPS = 255
DEFAULT_ALPHA, DEFAULT_BETA = 0.2, 0.5


def write_hard_sigmoids(model: onnx.ModelProto) -> int:
    """Write every hard sigmoid between a dequantize and a quantize node (uint8) as rounding, in place; count them."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    readers = consumers(graph)
    dropped: set[str] = set()
    count = 0
    for node in list(graph.node):
        if node.op_type != "HardSigmoid":
            continue
        source = producers.get(node.input[0])
        uses = readers.get(node.output[0], [])
        if source is None or source.op_type != "DequantizeLinear" or not uses:
            continue
        quantizers = [user for user, _ in uses if user.op_type == "QuantizeLinear"]
        if len(quantizers) != len(uses):
            continue
        data = _exact_source(source, producers, readers)
        for quantizer in quantizers:
            _round_as_hard_sigmoid(graph, node, quantizer, data, readers)
        dropped.add(node.name)
        count += 1
    if count:
        kept = [node for node in graph.node if node.name not in dropped or node.op_type != "HardSigmoid"]
        replace_nodes(graph, _without_dead(kept, {value.name for value in graph.output}))
        drop_unused_initializers(graph)
    return count


def _exact_source(
    dequantizer: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
) -> str:
    """Return the value before it was rounded the first time where nothing else reads it, else the rounded one."""
    quantizer = producers.get(dequantizer.input[0])
    alone = len(readers.get(dequantizer.output[0], [])) == 1 and len(readers.get(dequantizer.input[0], [])) == 1
    if quantizer is None or quantizer.op_type != "QuantizeLinear" or not alone:
        return str(dequantizer.output[0])
    return str(quantizer.input[0])


def _round_as_hard_sigmoid(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    quantizer: onnx.NodeProto,
    data: str,
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
) -> None:
    """Let ``quantizer`` read ``data`` and round it so that what follows reads the hard sigmoid's values."""
    given = {attribute.name: attribute.f for attribute in node.attribute}
    alpha, beta = given.get("alpha", DEFAULT_ALPHA), given.get("beta", DEFAULT_BETA)
    values = {
        "scale": np.float32(1 / (_STEPS * alpha)),
        "offset": np.uint8(round(_STEPS * beta)),
        "step": np.float32(1 / _STEPS),
        "zero": np.uint8(0),
    }
    names = {key: f"{node.name}_{key}" for key in values}
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), names[key])
        for key, value in values.items()
        if names[key] not in known
    )
    quantizer.input[:] = [data, names["scale"], names["offset"]]
    for user, _ in readers.get(quantizer.output[0], []):
        if user.op_type == "DequantizeLinear":
            user.input[:] = [user.input[0], names["step"], names["zero"]]


def _without_dead(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Remove nodes that nothing reads, from the end."""
    used = set(outputs)
    kept = []
    for node in reversed(nodes):
        if used & set(node.output):
            kept.append(node)
            used |= set(node.input)
    return kept[::-1]

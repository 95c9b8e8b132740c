"""Hard sigmoids in int8: a hard sigmoid is a line clipped at 0 and 1, and so is rounding to uint8.

    HardSigmoid(x) = max(0, min(1, a * x + b))
    q = QuantizeLinear(x, scale=1 / (255 * a), zero=round(255 * b))
    DequantizeLinear(q, scale=1 / 255, zero=0) = HardSigmoid(x)

up to half a step of 1/255. So the node is removed, and if nothing else reads its input, the convolution before it is
rounded this way. The product that reads the result, in a hard swish or a channel gate, then stays in integers.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.graph.model import drop_unused_initializers, find_consumers, read_names, replace_nodes

_STEP_COUNT = 255
DEFAULT_ALPHA, DEFAULT_BETA = 0.2, 0.5
"""Of ``HardSigmoid`` in ONNX."""


def write_hard_sigmoids(model: onnx.ModelProto) -> int:
    """Replace every hard sigmoid between a dequantize and a quantize node (uint8), in place; return their number."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    readers = find_consumers(graph)
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
        data = _find_exact_source(source, producers, readers)
        for quantizer in quantizers:
            _round_as_hard_sigmoid(graph, node, quantizer, data, readers)
        dropped.add(node.name)
        count += 1
    if count:
        kept = [node for node in graph.node if node.name not in dropped or node.op_type != "HardSigmoid"]
        replace_nodes(graph, _drop_unread(kept, {value.name for value in graph.output}))
        drop_unused_initializers(graph)
    return count


def _find_exact_source(
    dequantizer: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
) -> str:
    """Return the value before its first rounding if nothing else reads it, else the rounded one."""
    quantizer = producers.get(dequantizer.input[0])
    is_read_once = len(readers.get(dequantizer.output[0], [])) == 1 and len(readers.get(dequantizer.input[0], [])) == 1
    if quantizer is None or quantizer.op_type != "QuantizeLinear" or not is_read_once:
        return str(dequantizer.output[0])
    return str(quantizer.input[0])


def _round_as_hard_sigmoid(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    quantizer: onnx.NodeProto,
    data: str,
    readers: dict[str, list[tuple[onnx.NodeProto, int]]],
) -> None:
    """Let ``quantizer`` round ``data`` so that the nodes after it read the hard sigmoid's values."""
    attributes = {attribute.name: attribute.f for attribute in node.attribute}
    alpha, beta = attributes.get("alpha", DEFAULT_ALPHA), attributes.get("beta", DEFAULT_BETA)
    values = {
        "scale": np.float32(1 / (_STEP_COUNT * alpha)),
        "offset": np.uint8(round(_STEP_COUNT * beta)),
        "step": np.float32(1 / _STEP_COUNT),
        "zero": np.uint8(0),
    }
    names = {key: f"{node.name}_{key}" for key in values}
    stored = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), names[key])
        for key, value in values.items()
        if names[key] not in stored
    )
    quantizer.input[:] = [data, names["scale"], names["offset"]]
    for user, _ in readers.get(quantizer.output[0], []):
        if user.op_type == "DequantizeLinear":
            user.input[:] = [user.input[0], names["step"], names["zero"]]


def _drop_unread(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes whose outputs are read, directly or through others."""
    used = set(outputs)
    kept = []
    for node in reversed(nodes):
        if used & set(node.output):
            kept.append(node)
            used |= read_names(node)
    return kept[::-1]

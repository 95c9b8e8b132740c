"""Weight-only integers: matrix products keep float activations, their weights have 4 or 8 bits.

ONNX Runtime's ``MatMulNBits`` (domain ``com.microsoft``) takes the weights of ``A (m, k) x B (k, n)`` in blocks
along k, each with a scale and a zero point of its own. A block's range is the one with the least square error among
narrower ones: with 15 steps, a rare large weight costs the others too much (Nagel et al., 2021, section 2.2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.facts import PRODUCTS
from edgeopt.graph.matmul_nbits import pack_bits
from edgeopt.graph.model import MICROSOFT, Arrays, arrays, drop_unused_initializers, replace_nodes
from edgeopt.records.recipe import QuantizeWeights

_STAGE = "quantize"
INTEGER_PRODUCTS = 4
"""``accuracy_level``: activations are rounded to int8 block by block inside the kernel, which is the quick way."""
_KEPT = np.linspace(1.0, 0.6, 9, dtype=np.float32)
"""Shares of a block's range that are tried."""
_Floats = NDArray[np.float32]


def quantize_weights(model: onnx.ModelProto, step: QuantizeWeights) -> onnx.ModelProto:
    """Return the model with the weights of its matrix products in few bits.

    Raises:
        StepError: no product has constant weights.
    """
    graph = model.graph
    constants = arrays(graph)
    nodes: list[onnx.NodeProto] = []
    stored: set[str] = set()
    for index, node in enumerate(graph.node):
        weights = _weights(node, constants)
        if weights is None:
            nodes.append(node)
            continue
        name = node.name or f"{node.op_type}_{index}"
        nodes += _product(graph, node, name, weights, step, constants, stored)
    if not stored:
        raise StepError(_STAGE, "no matrix product of this graph has constant weights. Leave this step out.")
    replace_nodes(graph, nodes)
    drop_unused_initializers(graph)
    if all(entry.domain != MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return model


def round_blocks(weights: _Floats, bits: int, block: int) -> tuple[NDArray[np.uint8], _Floats, NDArray[np.uint8]]:
    """Round weights in blocks.

    Args:
        weights: ``(k, n)``.
        bits: Of each.
        block: Weights that share a scale, along k.

    Returns:
        Values ``(n, blocks, block)``, scales ``(n, blocks)`` and zero points ``(n, blocks)``; the last block is filled
        with zeros.
    """
    depth, columns = weights.shape
    count = math.ceil(depth / block)
    padded = np.zeros((columns, count * block), np.float32)
    padded[:, :depth] = weights.T
    blocks = padded.reshape(columns, count, block)
    low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
    most = 2**bits - 1
    best: list[NDArray[Any]] = []
    for kept in _KEPT:
        scale = (high - low) * kept / most
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        zero = np.clip(np.rint(-low * kept / scale), 0, most)
        values = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, most)
        error = (((values - zero[..., None]) * scale[..., None] - blocks) ** 2).sum(2)
        if not best:
            best = [error, values, scale, zero]
            continue
        better = error < best[0]
        for place, found in enumerate((error, values, scale, zero)):
            best[place] = np.where(better[..., None] if found.ndim == 3 else better, found, best[place])
    return best[1].astype(np.uint8), best[2].astype(np.float32), best[3].astype(np.uint8)


def _weights(node: onnx.NodeProto, constants: Arrays) -> _Floats | None:
    """Return the weights ``(k, n)`` of a product that can be rewritten, None for any other node."""
    if node.op_type not in PRODUCTS or node.input[1] not in constants:
        return None
    weights = constants[node.input[1]]
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if weights.ndim != 2 or weights.dtype != np.float32 or given.get("transA", 0):
        return None
    if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
        return None
    return weights.T if given.get("transB", 0) else weights


def _product(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    name: str,
    weights: _Floats,
    step: QuantizeWeights,
    constants: Arrays,
    stored: set[str],
) -> list[onnx.NodeProto]:
    """Return what takes a product's place, with its weights stored in the graph: tied ones once."""
    key = f"{node.input[1]}_{'t' if weights is not constants[node.input[1]] else 'n'}_{step.bits}bits"
    names = [f"{key}_{part}" for part in ("values", "scales", "zeros")]
    if key not in stored:
        values, scales, zeros = round_blocks(weights, step.bits, step.block)
        parts: tuple[NDArray[Any], ...] = (
            pack_bits(values, step.bits),
            scales.ravel(),
            pack_bits(zeros, step.bits).ravel(),
        )
        graph.initializer.extend(numpy_helper.from_array(part, one) for part, one in zip(parts, names, strict=True))
        stored.add(key)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    product = helper.make_node(
        "MatMulNBits",
        [node.input[0], *names],
        [f"{name}_product" if bias else node.output[0]],
        name,
        domain=MICROSOFT,
        K=weights.shape[0],
        N=weights.shape[1],
        bits=step.bits,
        block_size=step.block,
        accuracy_level=INTEGER_PRODUCTS,
    )
    if not bias:
        return [product]
    return [product, helper.make_node("Add", [product.output[0], bias], list(node.output), f"{name}_bias")]

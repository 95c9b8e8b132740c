"""One layer as a separate file, complete or factorized into two, to be timed.

Weights are random; shapes are the layer's. ``join_models`` puts many such files side by side into one, so that a graph
step is done once for all of them; ``split_models`` separates them again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from onnx.utils import Extractor

from edgeopt.records.low_rank import Factorization, LowRankLayer

_OPSET, _IR_VERSION = 13, 7
"""Old enough for every runtime that loads edgeopt's files."""


def make_layer_model(layer: LowRankLayer, factorization: Factorization | None, batch_size: int) -> onnx.ModelProto:
    """Return a file with input ``x`` and output ``y`` that holds a layer, or the pair that replaces it.

    Args:
        layer: A linear layer or a convolution.
        factorization: How it becomes two; None for the original layer.
        batch_size: Samples of the input.
    """
    parts = _parts(layer, factorization)
    nodes, weights, name = [], [], "x"
    rng = np.random.default_rng(0)
    for index, (shape, attributes) in enumerate(parts):
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        is_convolution = len(shape) > 2
        weight = (values if is_convolution else values.T).astype(np.float32)
        weights.append(numpy_helper.from_array(np.ascontiguousarray(weight), f"w{index}"))
        output = "y" if index == len(parts) - 1 else f"h{index}"
        nodes.append(
            helper.make_node(
                "Conv" if is_convolution else "MatMul", [name, f"w{index}"], [output], f"n{index}", **attributes
            )
        )
        name = output
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch_size, *layer.input_shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return onnx.shape_inference.infer_shapes(model)


def _parts(layer: LowRankLayer, factorization: Factorization | None) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """Return the weight's shape and the attributes of the layer, or of each layer of the pair."""
    channels_out, channels_in, *kernel = layer.shape
    geometry = (layer.stride, layer.padding, layer.dilation)
    if factorization is None:
        return [_part(layer.shape, *geometry)]
    rank = factorization.rank
    if factorization.form == "separable":
        neutral = (1, 0, 1)  # a stride, a padding and a dilation that change nothing
        down = tuple((value[0], n) for value, n in zip(geometry, neutral, strict=True))
        across = tuple((n, value[1]) for value, n in zip(geometry, neutral, strict=True))
        return [
            _part((rank, channels_in, kernel[0], 1), *down),
            _part((channels_out, rank, 1, kernel[1]), *across),
        ]
    ones = tuple(1 for _ in kernel)
    zeros = tuple(0 for _ in kernel)
    return [_part((rank, channels_in, *kernel), *geometry), _part((channels_out, rank, *ones), ones, zeros, ones)]


def _part(
    shape: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], dict[str, Any]]:
    if len(shape) == 2:
        return shape, {}
    attributes = {"kernel_shape": shape[2:], "strides": stride, "pads": padding + padding, "dilations": dilation}
    return shape, attributes


def join_models(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Return one file that holds many files' layers side by side; ``xN`` and ``yN`` are input and output of the Nth."""
    joined = onnx.ModelProto()
    joined.CopyFrom(models[0])
    joined.ClearField("graph")
    joined.graph.name = "layers"
    for number, model in enumerate(models):
        graph = compose.add_prefix_graph(model.graph, f"{number}/")
        for node in graph.node:
            node.input[:] = [f"x{number}" if name == f"{number}/x" else name for name in node.input]
            node.output[:] = [f"y{number}" if name == f"{number}/y" else name for name in node.output]
        graph.input[0].name, graph.output[0].name = f"x{number}", f"y{number}"
        for field in ("node", "initializer", "input", "output", "value_info"):
            getattr(joined.graph, field).extend(getattr(graph, field))
    return joined


def split_models(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    """Return each layer of a joined file as a separate file, in the form that graph steps have given it."""
    extractor = Extractor(model)
    return [extractor.extract_model([f"x{number}"], [f"y{number}"]) for number in range(len(model.graph.output))]

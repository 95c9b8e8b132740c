"""One layer as a file of its own, whole or as two in a row, to be timed: weights are random, shapes are the layer's.

``join_models`` puts many of them side by side into one file, so that a graph step is done once for all; ``split_models`` takes
them out again.
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

OPSET, IR = 13, 7
"""Old enough for every runtime that loads an edgeopt file."""


def layer_model(layer: LowRankLayer, factor: Factorization | None, batch_size: int) -> onnx.ModelProto:
    """Return a file with input ``x`` and output ``y`` that holds a layer, or the pair that it would become.

    Args:
        layer: A linear layer or a convolution.
        factor: How it becomes two; None for the layer as it is.
        batch_size: Samples of the input.
    """
    parts = _parts(layer, factor)
    nodes, weights, name = [], [], "x"
    rng = np.random.default_rng(0)
    for index, (shape, attributes) in enumerate(parts):
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        convolution = len(shape) > 2
        weight = (values if convolution else values.T).astype(np.float32)
        weights.append(numpy_helper.from_array(np.ascontiguousarray(weight), f"w{index}"))
        result = "y" if index == len(parts) - 1 else f"h{index}"
        nodes.append(
            helper.make_node(
                "Conv" if convolution else "MatMul", [name, f"w{index}"], [result], f"n{index}", **attributes
            )
        )
        name = result
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch_size, *layer.input_shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return onnx.shape_inference.infer_shapes(model)


def _parts(layer: LowRankLayer, factor: Factorization | None) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """Return the weight's shape and the attributes of each layer in the row."""
    channels_out, channels_in, *kernel = layer.shape
    whole = (layer.stride, layer.padding, layer.dilation)
    if factor is None:
        return [_part(layer.shape, *whole)]
    rank = factor.rank
    if factor.form == "separable":
        down, across = (tuple((one[0], n) for one, n in zip(whole, (1, 0, 1), strict=True)),
                        tuple((n, one[1]) for one, n in zip(whole, (1, 0, 1), strict=True)))  # fmt: skip
        return [
            _part((rank, channels_in, kernel[0], 1), *down),
            _part((channels_out, rank, 1, kernel[1]), *across),
        ]
    ones = tuple(1 for _ in kernel)
    zeros = tuple(0 for _ in kernel)
    return [_part((rank, channels_in, *kernel), *whole), _part((channels_out, rank, *ones), ones, zeros, ones)]


def _part(
    shape: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], dict[str, Any]]:
    if len(shape) == 2:
        return shape, {}
    attributes = {"kernel_shape": shape[2:], "strides": stride, "pads": padding + padding, "dilations": dilation}
    return shape, attributes


def join_models(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Return one file with the layers of many side by side: input ``xN`` and output ``yN`` are those of the Nth."""
    whole = onnx.ModelProto()
    whole.CopyFrom(models[0])
    whole.ClearField("graph")
    whole.graph.name = "layers"
    for number, model in enumerate(models):
        graph = compose.add_prefix_graph(model.graph, f"{number}/")
        for node in graph.node:
            node.input[:] = [f"x{number}" if name == f"{number}/x" else name for name in node.input]
            node.output[:] = [f"y{number}" if name == f"{number}/y" else name for name in node.output]
        graph.input[0].name, graph.output[0].name = f"x{number}", f"y{number}"
        for part in ("node", "initializer", "input", "output", "value_info"):
            getattr(whole.graph, part).extend(getattr(graph, part))
    return whole


def split_models(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    """Return the layers of a joined file, each as a file of its own, whatever graph steps have made of them."""
    extractor = Extractor(model)
    return [extractor.extract_model([f"x{number}"], [f"y{number}"]) for number in range(len(model.graph.output))]

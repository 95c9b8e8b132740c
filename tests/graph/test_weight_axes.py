"""Int8 weights whose readers do not agree on the axis of the channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.bench.outputs import write_batches
from edgeopt.graph.quantization.static import quantize
from edgeopt.graph.quantization.weight_axes import find_single_scale_weights
from edgeopt.records.recipe import Quantize

SIZE = 48
make_node = helper.make_node


def make_matrices(*shape: int) -> np.ndarray:
    """Return matrices whose rows differ much in size, so that scales for each row and for each column differ."""
    random = np.random.default_rng(0)
    return (random.normal(size=shape) * np.exp(random.normal(size=(shape[-2], 1)))).astype(np.float32)


READ_BOTH_WAYS = [
    make_node("Reshape", ["x", "flat"], ["rows"]),
    make_node("Gemm", ["rows", "weight"], ["first"]),
    make_node("Relu", ["first"], ["positive"]),
    make_node("Gemm", ["positive", "weight"], ["y"], transB=1),
]
BATCH_OF_MATRICES = [make_node("MatMul", ["x", "weight"], ["y"])]


def make_model(nodes: list[onnx.NodeProto], weight: np.ndarray) -> onnx.ModelProto:
    arrays = {"weight": weight, "flat": np.array([-1, SIZE])}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model: onnx.ModelProto, batch: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, batch)[0])


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [(READ_BOTH_WAYS, (SIZE, SIZE)), (BATCH_OF_MATRICES, (4, SIZE, SIZE))],
    ids=["read both ways", "batch of matrices"],
)
def test_int8_computes_what_the_float_graph_computes(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = make_model(nodes, make_matrices(*shape))
    random = np.random.default_rng(1)
    batches = [{"x": random.normal(size=(2, 4, SIZE, SIZE)).astype(np.float32)} for _ in range(4)]
    write_batches(tmp_path / "batches.npz", batches)

    step = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=8)
    quantized, _ = quantize(onnx.ModelProto.FromString(model.SerializeToString()), step, tmp_path / "batches.npz")

    expected, found = run(model, batches[0]), run(quantized, batches[0])
    noise = ((found - expected) ** 2).sum() / (expected**2).sum()
    assert -10 * np.log10(noise) > 20  # dB; 1.3 with a scale for each channel of the matrix that is read both ways


def test_weights_with_one_axis_keep_a_scale_for_each_channel() -> None:
    one_way = [make_node("MatMul", ["x", "weight"], ["h"]), make_node("MatMul", ["h", "weight"], ["y"])]
    assert find_single_scale_weights(make_model(one_way, make_matrices(SIZE, SIZE)).graph) == []
    assert find_single_scale_weights(make_model(READ_BOTH_WAYS, make_matrices(SIZE, SIZE)).graph) == ["weight"]

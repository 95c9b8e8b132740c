import hashlib
import zlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_running import a_network, some_images, write
from torch import nn

from edgeopt.bench.outputs import write_batches
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import has_half_weights, is_quantized, read_facts
from edgeopt.records.recipe import Compact, Float16, FuseQLinear, Quantize, Simplify

INT8 = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network in float, int8 and float16."""
    folder = tmp_path_factory.mktemp("facts")
    write_batches(folder / "calibration.npz", [{"image": some_images()}])
    files = {"source": write(a_network(), folder / "source.onnx")}
    for name, steps in {"float": (), "int8": (INT8,), "fused": (INT8, FuseQLinear()), "float16": (Float16(),)}.items():
        files[name] = folder / f"{name}.onnx"
        apply_steps(
            (Simplify(), *steps, Compact()),
            files["source"],
            files[name],
            calibration=folder / "calibration.npz",
            max_opset=20,
            max_ir=9,
        )
    return files


def folded_parameters(network):
    """Weights and biases once each batch norm is folded into its convolution."""
    convolutions = sum(
        part.weight.numel() + part.out_channels for part in network.modules() if isinstance(part, nn.Conv2d)
    )
    return convolutions + sum(parameter.numel() for parameter in network.head.parameters())


@pytest.mark.parametrize("kind", ["float", "int8", "fused", "float16"])
def test_parameters_are_counted_whatever_the_number_format(files, kind):
    assert read_facts(files[kind]).parameters == folded_parameters(a_network())


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("float", ("float32",)), ("float16", ("float16",)), ("int8", ("int8", "float32")),
        ("fused", ("int8", "float32")),
    ],
)  # fmt: skip
def test_the_types_of_most_weights_are_named(files, kind, types):
    assert read_facts(files[kind]).weight_types == types
    model = onnx.load(files[kind])
    assert is_quantized(model) == ("int8" in types)
    assert has_half_weights(model) == ("float16" in types)


def test_weights_in_constant_nodes_are_parameters(tmp_path):
    weight = numpy_helper.from_array(np.ones((64, 64), np.float16))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", 64]) for name in "xy"]
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    facts = read_facts(tmp_path / "m.onnx")
    assert (facts.parameters, facts.weight_types) == (4096, ("float16",))


def test_zero_weights_are_not_counted_as_nonzero(files, tmp_path):
    model = onnx.load(files["float"])
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.ravel()[:7] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "sparse.onnx")
    assert read_facts(files["float"]).nonzero_parameters == read_facts(files["float"]).parameters
    assert read_facts(tmp_path / "sparse.onnx").nonzero_parameters == read_facts(files["float"]).parameters - 7


@pytest.mark.parametrize("kind", ["source", "float", "int8", "fused", "float16"])
def test_multiply_accumulates_are_for_one_sample(files, kind):
    stem = 16 * 16 * 8 * 9  # pixels, channels out, window
    first = 8 * 8 * (8 * 8 * 9 + 8 * 8 * 9 + 8 * 8)  # two convolutions and the skip
    second = 4 * 4 * (8 * 16 * 9 + 16 * 16 * 9 + 8 * 16)
    assert read_facts(files[kind]).macs == stem + first + second + 16 * 5


def test_sizes_and_hash_are_those_of_the_file(files):
    data, result = files["int8"].read_bytes(), read_facts(files["int8"])
    assert (result.size_bytes, result.download_bytes) == (len(data), len(zlib.compress(data, 9)))
    assert result.sha256 == hashlib.sha256(data).hexdigest()


def test_inputs_outputs_and_operators_are_named(files):
    result = read_facts(files["source"])
    assert result.inputs == (("image", ("batch", 1, 16, 16), "float32"),)
    assert result.outputs == (("logits", ("batch", 5), "float32"),)
    assert (result.operators["Conv"], result.operators["Gemm"]) == (7, 1)


def test_fused_operators_of_the_runtime_count_too(tmp_path):
    weight = np.ones((4, 2, 3, 3), np.int8)
    values = {"s": np.float32(0.1), "z": np.uint8(0), "wz": np.int8(0), "w": weight, "b": np.ones(4, np.int32)}
    nodes = [
        helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "wz", "s", "z", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QLinearAdd", ["c", "s", "z", "c", "s", "z", "s", "z"], ["a"], domain="com.microsoft"),
        helper.make_node("QLinearConv", ["a", "s", "z", "w2", "s", "wz", "s", "z"], ["y"]),
    ]
    values["w2"] = np.ones((1, 4, 1, 1), np.int8)
    graph = helper.make_graph(
        nodes,
        "fused",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", 1, 5, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "fused.onnx")
    result = read_facts(tmp_path / "fused.onnx")
    assert result.parameters == weight.size + 4 + 4
    assert result.macs == 25 * 4 * 18 + 25 * 4


def test_a_transposed_product_counts_its_inner_size(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 2])],
        [numpy_helper.from_array(np.ones((7, 2), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "gemm.onnx")
    assert read_facts(tmp_path / "gemm.onnx").macs == 3 * 2 * 7

"""Tables of embeddings in int8, and weights that a file holds once though it uses them twice."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_running import run, signal_to_noise_db
from torch import nn

from edgeopt.errors import StepError
from edgeopt.export import to_onnx
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import measure_packable_bytes_ratio, read_facts
from edgeopt.graph.weights.tied import store_tied_apart, store_tied_once, write_tied_once
from edgeopt.model_files.layout import weight_files
from edgeopt.records.recipe import Compact, QuantizeDynamic, QuantizeWeights

LIMITS = {"calibration": None, "max_opset": 20, "max_ir": 9}
VOCABULARY, WIDTH, TABLE_BYTES = 600, 32, 600 * 32
STEPS = {
    "dynamic": (QuantizeDynamic(reduce_range=True), 25.0),  # 8 bits saturate on processors without VNNI
    "8 bits": (QuantizeWeights(bits=8, block=32), 30.0),
    "4 bits": (QuantizeWeights(bits=4, block=32), 16.0),
}


class LanguageModel(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        with torch.no_grad():
            self.tokens.weight[::50] *= 20  # rows of another size
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens)
        return self.head(x + torch.relu(self.inner(x)))


def export(path, tied=True, exporter="dynamo"):
    torch.manual_seed(0)
    to_onnx.export(
        LanguageModel(tied), (torch.randint(0, VOCABULARY, (2, 7)),), path, input_names=("x",), output_names=("y",),
        max_opset=18, max_ir=8, exporter=exporter,
    )  # fmt: skip
    return path


def tables(path):
    stored = onnx.load(path).graph.initializer
    return [tensor for tensor in stored if np.prod(tensor.dims) == TABLE_BYTES]


def some_tokens():
    return np.random.default_rng(0).integers(0, VOCABULARY, (16, 7))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_either_exporters_file_holds_a_tied_table_once(tmp_path, exporter):
    path = export(tmp_path / "float.onnx", exporter=exporter)
    expected = run(path, some_tokens())
    write_tied_once(path)
    assert len(tables(path)) == 1
    np.testing.assert_allclose(run(path, some_tokens()), expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_tied_stays(tmp_path):
    path = export(tmp_path / "float.onnx", tied=False)
    before = path.read_bytes()
    write_tied_once(path)
    assert path.read_bytes() == before


def test_two_tables_that_are_transposes_of_each_other_both_stay_tables():
    values = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", [name, "i"], [f"y{name}"]) for name in ("a", "b")],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, ["n", 32]) for name in ("a", "b")],
        [numpy_helper.from_array(values, "a"), numpy_helper.from_array(np.ascontiguousarray(values.T), "b")],
    )
    assert store_tied_once(graph) == 0


def test_a_symmetric_matrix_is_not_its_own_transpose():
    values = np.eye(32, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "a"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(values, "a")],
    )  # fmt: skip
    assert store_tied_once(graph) == 0
    assert [tensor.name for tensor in graph.initializer] == ["a"]


def test_apart_undoes_once(tmp_path):
    path = export(tmp_path / "float.onnx", exporter="torchscript")
    model = onnx.load(path)
    count = len(model.graph.initializer)
    assert store_tied_once(model.graph) == 1
    store_tied_apart(model.graph)
    assert len(model.graph.initializer) == count
    assert all(node.op_type != "Transpose" for node in model.graph.node)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", STEPS)
def test_tables_are_integers_in_every_form_with_integer_weights(tmp_path, kind, tied):
    step, least_db = STEPS[kind]
    source = export(tmp_path / "float.onnx", tied)
    path = apply_steps((step, Compact()), source, tmp_path / "small.onnx", **LIMITS)[-1].path
    assert all(tensor.data_type in (TensorProto.INT8, TensorProto.UINT8) for tensor in tables(path))
    assert signal_to_noise_db(run(source, some_tokens()), run(path, some_tokens())) > least_db
    before, after = read_facts(source), read_facts(path)
    if not tied:
        assert after.parameters == before.parameters
    assert path.stat().st_size < (0.4 if tied else 0.35) * before.parameters * 4 * (1 if not tied else 2)


def test_tied_weights_are_the_same_integers_in_dynamic_int8(tmp_path):
    source = export(tmp_path / "float.onnx")
    path = apply_steps((STEPS["dynamic"][0], Compact()), source, tmp_path / "small.onnx", **LIMITS)[-1].path
    assert len(tables(path)) == 1
    assert path.stat().st_size < 1.5 * TABLE_BYTES


def a_lookup(path, *, axis=0, dtype=np.float32):
    """Write a file with nothing but a table."""
    values = np.random.default_rng(0).standard_normal((500, 24)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "x"], ["y"], axis=axis)], "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", kind, ["n", 24] if axis == 0 else [500, "n"])],
        [numpy_helper.from_array(values, "t")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_file_of_tables_becomes_a_quarter(tmp_path):
    source = a_lookup(tmp_path / "t.onnx")
    assert measure_packable_bytes_ratio(onnx.load(source)) > 0.99
    path = apply_steps((STEPS["8 bits"][0], Compact()), source, tmp_path / "s.onnx", **LIMITS)[-1].path
    indices = np.array([0, 3, 499, -1])
    assert signal_to_noise_db(run(source, indices), run(path, indices)) > 38
    assert path.stat().st_size < 0.32 * source.stat().st_size
    assert read_facts(path).parameters == 500 * 24


@pytest.mark.parametrize("how", [{"axis": 1}, {"dtype": np.float64}])
def test_columns_and_other_types_are_left(tmp_path, how):
    source = a_lookup(tmp_path / "t.onnx", **how)
    with pytest.raises(StepError, match="no table, and no matrix product"):
        apply_steps((STEPS["8 bits"][0],), source, tmp_path / "s.onnx", **LIMITS)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_weights_too_large_for_one_file_are_exported_as_a_pair(tmp_path, monkeypatch, exporter):
    export(tmp_path / "whole.onnx", exporter=exporter)
    monkeypatch.setenv("_EDGEOPT_MAX_FILE_BYTES", "20000")
    export(tmp_path / "pair.onnx", exporter=exporter)
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".onnx", ".data")] == []
    assert len(weight_files(tmp_path / "pair.onnx")) == 1
    indices = np.array([[0, 3, 499, 1, 2, 5, 8]])
    np.testing.assert_array_equal(run(tmp_path / "pair.onnx", indices), run(tmp_path / "whole.onnx", indices))

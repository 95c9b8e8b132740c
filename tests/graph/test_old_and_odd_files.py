"""Int8 of files as other exporters write them: old operator sets, weights anywhere, tools that give up."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_running import run, runtime_operators, signal_to_noise_db

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import read_facts
from edgeopt.graph.model import has_repeated_names, name_nodes
from edgeopt.graph.preparation.operator_sets import are_same_outputs, convert_operator_set
from edgeopt.graph.quantization.static import prepare
from edgeopt.graph.weights.int8_weights import measure_stored_ratio, round_weights
from edgeopt.records.recipe import Compact, Quantize, QuantizeDynamic, QuantizeWeights, Simplify, StoreWeights

INT8 = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=32)
LIMITS = {"max_opset": 20, "max_ir": 9}
INT8_DB = 20.0  # 7 bits of weights; random ones give 28 to 32
STORED_DB = 35.0  # 8 bits of weights, activations in float
RANDOM = np.random.RandomState(0)
ROWS = RANDOM.standard_normal((32, 24)).astype(np.float32)


def save(path, nodes, weights, *, opset, output=("n", 16), ir=7):
    value = helper.make_tensor_value_info
    stored = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    inputs, outputs = [value("x", TensorProto.FLOAT, ["n", 24])], [value("y", TensorProto.FLOAT, list(output))]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), path)
    return path


def two_layers(**names):
    return [
        helper.make_node("MatMul", ["x", "w/1"], ["h 0"], **names),
        helper.make_node("Relu", ["h 0"], ["h:1"], **names),
        helper.make_node("MatMul", ["h:1", "wéight"], ["y"], **names),
    ]


def weights():
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


SHAPES = {"w/1": (24, 64), "wéight": (64, 16)}


@pytest.fixture
def calibration(tmp_path):
    path = tmp_path / "calibration.npz"
    write_batches(path, [{"x": ROWS[:16]}, {"x": ROWS[16:]}])
    return path


def applied(source, steps, calibration=None):
    results = apply_steps(steps, source, source.with_name("out.onnx"), calibration=calibration, **LIMITS)
    return results[-1].path, [note for result in results for note in result.notes]


def noise_db(source, target):
    return signal_to_noise_db(run(source, ROWS), run(target, ROWS))


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_an_old_operator_set_is_raised_for_int8(opset, tmp_path, calibration):
    source = save(tmp_path / "old.onnx", two_layers(), weights(), opset=opset, ir=4)
    path, notes = applied(source, (Simplify(), INT8, Compact()), calibration)
    assert noise_db(source, path) > INT8_DB
    assert any(f"operator set {opset} raised to 13" in note for note in notes)
    assert path.stat().st_size < 0.5 * source.stat().st_size


@pytest.mark.parametrize("names", [{}, {"name": "a/b é"}], ids=["empty", "the same"])
def test_nodes_without_names_and_with_the_same_name_are_quantized(names, tmp_path, calibration):
    stored = weights()
    source = save(tmp_path / "named.onnx", two_layers(**names), stored, opset=17)
    plain = save(tmp_path / "plain.onnx", two_layers(), stored, opset=17)  # ONNX Runtime refuses one name for two nodes
    path, _ = applied(source, (Simplify(), INT8, Compact()), calibration)
    assert noise_db(plain, path) > INT8_DB


def test_weights_in_constant_nodes_are_quantized(tmp_path, calibration):
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values))
        for name, values in weights().items()
    ]
    source = save(tmp_path / "constants.onnx", [*nodes, *two_layers()], {}, opset=17)
    for steps in ((INT8, Compact()), (StoreWeights(), Compact())):
        path, _ = applied(source, steps, calibration)
        assert path.stat().st_size < 0.5 * source.stat().st_size
        assert noise_db(source, path) > INT8_DB


def test_where_symbolic_shape_inference_gives_up_the_next_way_is_taken_and_named(tmp_path, calibration, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shape = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Min", ["s", "limit"], ["least"]),  # ONNX Runtime's tool has no rule for these sizes
        helper.make_node("ConstantOfShape", ["least"], ["zeros"]),
        helper.make_node("Add", ["x", "zeros"], ["x2"]),
    ]
    product = two_layers()
    product[0].input[0] = "x2"
    stored = weights() | {"limit": np.array([1_000_000, 24], np.int64)}
    source = save(tmp_path / "shapes.onnx", [*shape, *product], stored, opset=17)
    path, notes = applied(source, (INT8, Compact()), calibration)
    assert noise_db(source, path) > INT8_DB
    assert any("quantize: prepared without symbolic shape inference, because" in note for note in notes)
    assert list(Path.cwd().iterdir()) == [], "ONNX Runtime leaves its model where it runs"


def test_where_the_quantizer_fails_on_an_operator_the_weights_are_still_quantized(tmp_path, calibration):
    nodes = two_layers()
    nodes[2].output[0] = "h2"
    nodes.append(helper.make_node("LayerNormalization", ["h2", "gain", "shift"], ["y"]))
    flat = {"gain": np.ones((1, 16), np.float32), "shift": np.full((1, 16), 0.1, np.float32)}
    source = save(tmp_path / "norm.onnx", nodes, weights() | flat, opset=17)
    path, notes = applied(source, (INT8, Compact()), calibration)
    assert noise_db(source, path) > INT8_DB
    assert any("only in convolutions and matrix products, because onnxruntime.quantization failed" in n for n in notes)


def test_weights_that_an_old_file_lists_among_its_inputs_are_constants(tmp_path, calibration):
    source = save(tmp_path / "old.onnx", two_layers(), weights(), opset=8, ir=4)
    model = onnx.load(source)
    model.ir_version = 3
    for name, shape in SHAPES.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.save(model, source)
    for steps in ((Simplify(), INT8, Compact()), (StoreWeights(), Compact())):
        path, _ = applied(source, steps, calibration)
        assert noise_db(source, path) > INT8_DB
        assert [value.name for value in onnx.load(path).graph.input] == ["x"]


def test_a_newer_operator_set_is_lowered_and_computes_the_same(tmp_path):
    nodes = [*two_layers()[:2], helper.make_node("Reshape", ["h:1", "shape"], ["y"])]
    stored = {"w/1": weights()["w/1"], "shape": np.array([-1, 64], np.int64)}
    source = save(tmp_path / "new.onnx", nodes, stored, opset=21, ir=10, output=("n", 64))
    lowered, reason = convert_operator_set(onnx.load(source), 20, None)
    assert (reason, lowered.opset_import[0].version, lowered.ir_version) == ("", 20, 9)
    target = tmp_path / "lowered.onnx"
    onnx.save(lowered, target)
    assert are_same_outputs(run(source, ROWS), run(target, ROWS))


def test_an_operator_set_that_lacks_an_operator_is_not_taken(tmp_path):
    nodes = [helper.make_node("Gelu", ["x"], ["y"])]
    source = save(tmp_path / "gelu.onnx", nodes, {}, opset=20, ir=9, output=("n", 24))
    lowered, reason = convert_operator_set(onnx.load(source), 12, None)
    assert lowered is None
    assert reason


def test_repeated_names_of_nodes_are_seen(tmp_path):
    source = save(tmp_path / "named.onnx", two_layers(name="same"), weights(), opset=17)
    model = onnx.load(source)
    assert has_repeated_names(model.graph)
    name_nodes(model.graph)
    assert not has_repeated_names(model.graph)


def test_a_float16_file_is_quantized_from_float32_and_keeps_its_types(tmp_path, calibration):
    nodes = [helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16), *two_layers()]
    nodes[1].input[0] = "x16"
    halves = {name: values.astype(np.float16) / 8 for name, values in weights().items()}
    source = save(tmp_path / "half.onnx", nodes, halves, opset=17)
    model = onnx.load(source)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, source)
    dynamic = QuantizeDynamic(reduce_range=True)
    for step in (INT8, dynamic, QuantizeWeights(bits=8, block=32), StoreWeights()):
        path, notes = applied(source, (Simplify(), step, Compact()), calibration)
        assert run(path, ROWS).dtype == np.float16
        assert signal_to_noise_db(*(run(one, ROWS).astype(np.float32) for one in (source, path))) > INT8_DB
        assert any("16-bit weights were widened first" in note for note in notes)


# -- weights stored in int8 --------------------------------------------------------------------------------------------


def test_weights_of_recurrent_cells_and_embeddings_are_stored_in_int8(tmp_path):
    hidden = 32
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Transpose", ["e"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "W", "R", "B"], ["", "last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "axis"], ["y"]),
    ]
    stored = {
        "table": RANDOM.standard_normal((200, 16)).astype(np.float32),
        "W": 0.3 * RANDOM.standard_normal((1, 4 * hidden, 16)).astype(np.float32),
        "R": 0.3 * RANDOM.standard_normal((1, 4 * hidden, hidden)).astype(np.float32),
        "B": np.zeros((1, 8 * hidden), np.float32),
        "axis": np.array([0], np.int64),
    }
    source = save(tmp_path / "lstm.onnx", nodes, stored, opset=17, output=("n", hidden))
    path, notes = applied(source, (Simplify(), StoreWeights(), Compact()))
    assert noise_db(source, path) > STORED_DB
    assert path.stat().st_size < 0.35 * source.stat().st_size
    assert "store-weights: 3 tensors in int8" in notes[-1]
    assert "Mul" not in runtime_operators(path)  # folded when the file is loaded: it runs as fast as before
    assert read_facts(path).parameters == read_facts(source).parameters
    assert measure_stored_ratio(onnx.load(source), frozenset({"LSTM"})) == pytest.approx(12_800 / 38_408)


def branch(name, read):
    values = numpy_helper.from_array(RANDOM.standard_normal((24, 64)).astype(np.float32), f"w_{name}")
    out = helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, ["n", 64])
    return helper.make_graph([helper.make_node("MatMul", [read, values.name], [out.name])], name, [], [out], [values])


def branches(read):
    return [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("then", read), else_branch=branch("else", read)),
    ]


def test_weights_inside_branches_are_stored_too(tmp_path):
    source = save(tmp_path / "if.onnx", branches("x"), {"zero": np.float32(0)}, opset=13, output=("n", 64))
    path, _ = applied(source, (StoreWeights(), Compact()))
    for rows in (ROWS, -ROWS):
        assert signal_to_noise_db(run(source, rows), run(path, rows)) > STORED_DB
    assert path.stat().st_size < 0.4 * source.stat().st_size


def test_static_int8_of_a_graph_with_branches_is_right_in_both(tmp_path, calibration):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["h2"]), *branches("h2")]
    stored = {"zero": np.float32(0), "w": RANDOM.standard_normal((24, 24)).astype(np.float32)}
    source = save(tmp_path / "if.onnx", nodes, stored, opset=13, output=("n", 64))
    path, _ = applied(source, (Simplify(), INT8, StoreWeights(), Compact()), calibration)
    for rows in (ROWS, -ROWS):
        assert signal_to_noise_db(run(source, rows), run(path, rows)) > INT8_DB


def test_stored_weights_have_the_axis_with_the_smallest_error():
    uneven = RANDOM.standard_normal((32, 64)).astype(np.float32) * np.logspace(-3, 0, 64, dtype=np.float32)
    stored, scale = round_weights(uneven)
    assert (scale.shape, stored.dtype) == ((1, 64), np.int8)
    assert np.abs(stored * scale - uneven).max() <= 0.51 * scale.max()


def test_a_graph_without_large_weights_is_refused_in_a_sentence(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    source = save(tmp_path / "relu.onnx", nodes, {}, opset=17, output=("n", 24))
    with pytest.raises(StepError, match="no float32 weight of this graph has 1024 values"):
        applied(source, (StoreWeights(),))


def test_a_file_of_trees_has_nothing_to_quantize_and_is_skipped(tmp_path):
    scaler = onnx.helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0] * 4, scale=[1.0] * 4)
    rows = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = onnx.helper.make_graph([scaler], "trees", rows[:1], rows[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
    with pytest.raises(StepError, match="this variant is skipped"):
        prepare(model, tmp_path / "unread.npz", 8, tmp_path)

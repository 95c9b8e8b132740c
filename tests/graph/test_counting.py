"""Parameters and multiply-accumulates of files in every form, with those of branches and loop bodies."""

import numpy as np
import onnx
import pytest
from bodies import FILES, data_of, write_file
from onnx import TensorProto, helper, numpy_helper
from onnx_running import run, signal_to_noise_db

from edgeopt.bench.outputs import write_batches
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import is_quantized, read_facts
from edgeopt.records.recipe import (
    Compact,
    Float16,
    FuseQLinear,
    Quantize,
    QuantizeDynamic,
    QuantizeWeights,
    Simplify,
    StoreWeights,
)

INT8 = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=8)
FORMS = {
    "float16": (Float16(),),
    "static": (INT8,),
    "fused": (INT8, FuseQLinear()),
    "static, the rest stored": (INT8, FuseQLinear(), StoreWeights()),
    "dynamic": (QuantizeDynamic(reduce_range=True),),
    "dynamic, the rest stored": (QuantizeDynamic(reduce_range=True), StoreWeights()),
    "4 bits": (QuantizeWeights(bits=4, block=32),),
    "8 bits": (QuantizeWeights(bits=8, block=32),),
    "8 bits, the rest stored": (QuantizeWeights(bits=8, block=32), StoreWeights()),
    "stored": (StoreWeights(),),
}
STORED_DB, HALF_DB, INT8_DB = 30.0, 40.0, 18.0
"""Of weights in 8 bits through several passes of a body, of float16, and of activations in 8 bits too."""
RANDOM = np.random.RandomState(0)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def reader(path):
    """Ids to a table, a convolution, an LSTM and two products, with weights of every kind."""
    hidden = 32
    stored = {
        "table": floats(200, 24), "kernel": floats(24, 24, 3) / 9, "shift": floats(24),
        "W": floats(1, 4 * hidden, 24) / 5, "R": floats(1, 4 * hidden, hidden) / 6, "B": floats(1, 8 * hidden),
        "deep": floats(hidden, 64), "bias": floats(64), "head": floats(64, 40), "axis": np.array([0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Transpose", ["e"], ["et"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["et", "kernel", "shift"], ["c"], pads=[1, 1]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["t", "W", "R", "B"], ["", "last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "axis"], ["s"]),
        helper.make_node("Gemm", ["s", "deep", "bias"], ["d"]),
        helper.make_node("MatMul", ["d", "head"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 7]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 40]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(values), name) for name, values in stored.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return sum(values.size for name, values in stored.items() if name != "axis")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_parameters_of_the_float_file(form, tmp_path):
    source = tmp_path / "float.onnx"
    weights = reader(source)
    write_batches(tmp_path / "calibration.npz", [{"ids": RANDOM.randint(0, 200, (8, 7))}])
    (*_, made) = apply_steps(
        (Simplify(), *FORMS[form], Compact()), source, tmp_path / "made.onnx",
        calibration=tmp_path / "calibration.npz", max_opset=20, max_ir=9,
    )  # fmt: skip
    before, after = read_facts(source), read_facts(made.path)
    assert before.parameters == after.parameters == weights
    assert (before.macs, before.notes) == (after.macs, after.notes)
    assert is_quantized(onnx.load(made.path)) == (form != "float16")


BODY_FORMS = {
    "stored": STORED_DB,
    "dynamic, the rest stored": INT8_DB,
    "static, the rest stored": INT8_DB,
    "float16": HALF_DB,
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "static, the rest stored") for name in FILES),
        ("trip_count", "stored"), ("scan", "stored"), ("nested_branches", "stored"),
        ("exported_for", "dynamic, the rest stored"), ("scanned_lstm", "dynamic, the rest stored"),
        ("exported_for", "float16"), ("shared_kernel", "float16"),
    ],
)  # fmt: skip
def test_so_has_a_file_with_branches_or_bodies_and_its_outputs_stay_the_same(name, form, tmp_path):
    source, rows = write_file(tmp_path, name), data_of(name)
    rows = rows if FILES[name].shape[0] == "n" else rows[:1]
    write_batches(tmp_path / "calibration.npz", [{"x": rows}])
    results = apply_steps(
        (Simplify(), *FORMS[form], Compact()), source, tmp_path / "made.onnx",
        calibration=tmp_path / "calibration.npz", max_opset=20, max_ir=9,
    )  # fmt: skip
    path = results[-1].path
    before, after = read_facts(source), read_facts(path)
    kept_twice = 16 * 16 * 9 if (name, form) == ("shared_kernel", "static, the rest stored") else 0
    assert (before.parameters + kept_twice, before.macs) == (after.parameters, after.macs)
    assert (before.macs, before.notes == ()) == (FILES[name].macs, name != "condition")
    for signed in (rows, -rows):  # both branches
        assert signal_to_noise_db(run(source, signed), run(path, signed)) > BODY_FORMS[form]


def reshaping(opset):
    """A product of values whose shape the graph computes, as PyTorch writes ``x.reshape(x.shape[0], -1, 8)``."""
    axes = numpy_helper.from_array(np.array([0]), "axes")
    unsqueeze = ["n", "axes"] if opset >= 13 else ["n"]
    attributes = {} if opset >= 13 else {"axes": [0]}
    stored = {"first": np.array(0), "rest": np.array([-1, 8]), "w": floats(8, 4)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["r"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["n"], axis=0),
        helper.make_node("Unsqueeze", unsqueeze, ["rows"], **attributes),
        helper.make_node("Concat", ["rows", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["r", "shape"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [axes, *(numpy_helper.from_array(values, name) for name, values in stored.items())]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [9, 12, 17])
def test_shapes_that_a_graph_computes_from_sizes_are_followed_in_every_operator_set(opset, tmp_path):
    onnx.save(reshaping(opset), tmp_path / "m.onnx")
    facts = read_facts(tmp_path / "m.onnx", {"x": (1, 3, 16)})
    assert (facts.macs, facts.notes) == (6 * 8 * 4, ())


def test_pads_that_a_graph_computes_as_pytorch_writes_them_are_followed(tmp_path):
    stored = {
        "given": np.array([2, 2]), "missing": np.array([4]), "pairs": np.array([-1, 2]), "last": np.array([-1]),
        "past": np.array([-(2**62)]), "axis": np.array([0]), "back": np.array([-1]), "flat": np.array([-1]),
        "kernel": floats(4, 3, 5),
    }  # fmt: skip
    nodes = [
        helper.make_node("ConstantOfShape", ["missing"], ["none"], value=numpy_helper.from_array(np.array([0]))),
        helper.make_node("Concat", ["given", "none"], ["all"], axis=0),
        helper.make_node("Reshape", ["all", "pairs"], ["rows"]),
        helper.make_node("Slice", ["rows", "last", "past", "axis", "back"], ["turned"]),
        helper.make_node("Transpose", ["turned"], ["columns"], perm=[1, 0]),
        helper.make_node("Reshape", ["columns", "flat"], ["pads"]),
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Conv", ["p", "kernel"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "t"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(values, name) for name, values in stored.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), tmp_path / "m.onnx")
    facts = read_facts(tmp_path / "m.onnx", {"x": (1, 3, 20)})
    assert (facts.macs, facts.notes) == (20 * 4 * 3 * 5, ())


def test_macs_of_a_fixed_batch_are_those_of_one_sample(tmp_path):
    for batch in (1, 7):
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 8]) for name in "xy")
        weight = numpy_helper.from_array(floats(8, 8), "w")
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
        onnx.save(helper.make_model(graph), tmp_path / f"{batch}.onnx")
        assert read_facts(tmp_path / f"{batch}.onnx").macs == 64


def test_the_only_dimension_of_a_sound_is_no_batch(tmp_path):
    stored = {"axes": np.array([0, 1]), "kernel": floats(1, 1, 5)}
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["u"]),
        helper.make_node("Conv", ["u", "kernel"], ["c"], pads=[2, 2]),
        helper.make_node("Squeeze", ["c", "axes"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [16000]) for name in "xy")
    initializers = [numpy_helper.from_array(values, name) for name, values in stored.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    assert read_facts(tmp_path / "m.onnx").macs == 16000 * 5

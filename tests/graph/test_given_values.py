"""Inputs and outputs that are not tensors of numbers: found in the graph, and put into words."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt.errors import TaskError
from edgeopt.graph.given.values import check_inputs, check_outputs, describe_type
from edgeopt.graph.model import read_metadata, write_metadata

NUMBERS = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"])
MAPS = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, NUMBERS))
TYPES = {
    "maps": (MAPS, "a sequence of maps from int64 to float32", "ZipMap"),
    "map": (helper.make_map_type_proto(TensorProto.STRING, NUMBERS), "a map from strings to float32", "ZipMap"),
    "sequence": (helper.make_sequence_type_proto(NUMBERS), "a sequence of float32 tensors", "ConcatFromSequence"),
    "optional": (helper.make_optional_type_proto(NUMBERS), r"optional \(float32\)", "in which it is there"),
    "sparse": (helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3]), "a sparse tensor of float32", "dense"),
    "strings": (helper.make_tensor_type_proto(TensorProto.STRING, ["n"]), "strings", "class numbers|tokenizer"),
    "bfloat16": (helper.make_tensor_type_proto(TensorProto.BFLOAT16, ["n"]), "bfloat16", "Cast"),
    "float8": (helper.make_tensor_type_proto(TensorProto.FLOAT8E4M3FN, ["n"]), "float8e4m3fn", "Cast"),
    "int4": (helper.make_tensor_type_proto(TensorProto.INT4, ["n"]), "int4", "Cast"),
    "complex": (helper.make_tensor_type_proto(TensorProto.COMPLEX64, ["n"]), "complex64", "imaginary"),
}


def a_graph(inputs, outputs):
    ends = [[helper.make_value_info(name, kind) for name, kind in one.items()] for one in (inputs, outputs)]
    return helper.make_graph([], "g", *ends)


@pytest.mark.parametrize("name", TYPES)
def test_a_value_that_is_not_a_tensor_of_numbers_is_named_with_its_type_and_advice(name):
    kind, words, advice = TYPES[name]
    check_outputs(Path("m.onnx"), a_graph({"x": kind}, {"y": NUMBERS}))
    check_inputs(Path("m.onnx"), a_graph({"x": NUMBERS}, {"y": kind}))
    with pytest.raises(TaskError, match=rf"m\.onnx: output 'y' is {words}; .*({advice})"):
        check_outputs(Path("m.onnx"), a_graph({"x": NUMBERS}, {"z": NUMBERS, "y": kind}))
    with pytest.raises(TaskError, match=rf"m\.onnx: input 'x' is {words}; .*({advice})"):
        check_inputs(Path("m.onnx"), a_graph({"x": kind}, {"y": NUMBERS}))


def test_a_graph_without_inputs_or_outputs_is_refused():
    with pytest.raises(TaskError, match="no inputs"):
        check_inputs(Path("m.onnx"), a_graph({}, {"y": NUMBERS}))
    with pytest.raises(TaskError, match="no outputs"):
        check_outputs(Path("m.onnx"), a_graph({"x": NUMBERS}, {}))


def test_a_tensor_is_described_by_numpys_name():
    assert describe_type(NUMBERS) == "float32"


def test_metadata_that_apps_read_is_copied(tmp_path):
    for name, entries in (("given", {"names": "cat, dog", "stride": "32"}), ("made", {"onnx.infer": "x"})):
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", value[:1], value[1:])
        model = helper.make_model(graph)
        helper.set_model_props(model, entries)
        onnx.save(model, tmp_path / f"{name}.onnx")
    write_metadata(tmp_path / "made.onnx", read_metadata(tmp_path / "given.onnx"))
    assert read_metadata(tmp_path / "made.onnx") == {"names": "cat, dog", "stride": "32"}

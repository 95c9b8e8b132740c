"""Models that do not fit into one file: written, read, copied and moved as pairs, and changed by every graph step."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.counting import parameters
from edgeopt.graph.facts import is_quantized, read_facts
from edgeopt.graph.given.dynamic_batch import with_dynamic_batch
from edgeopt.graph.given.files import read_given, write_given
from edgeopt.graph.initializers import list_stored_tensors
from edgeopt.graph.model import lift_constants, load, save
from edgeopt.graph.preparation.operator_sets import convert_operator_set
from edgeopt.graph.weights.id_tables import IdReader, find_id_tables
from edgeopt.graph.weights.unseen_rows import choose_rows
from edgeopt.model_files.layout import (
    copy_model,
    has_all_parts,
    hash_of_file,
    is_unchanged,
    measure_bytes,
    move_model,
    weight_files,
)
from edgeopt.model_files.tensors import hash_model, is_external, tensor_values
from edgeopt.records.recipe import Compact, Float16, FlushDenormals, QuantizeWeights, Simplify, StoreWeights

LIMIT_BYTES = 60_000
"""Of one file, in these tests: below the 134 kB of the float32 network and the 67 kB of float16."""
LIMITS = {"calibration": None, "max_opset": 20, "max_ir": 9}
TOKENS = np.array([[1, 5, 0], [2, 3, 499]])


@pytest.fixture
def limited(monkeypatch):
    monkeypatch.setenv("_EDGEOPT_MAX_FILE_BYTES", str(LIMIT_BYTES))


def a_language_model() -> onnx.ModelProto:
    """Return a table of 500 tokens that is also the last layer, around a product with a bias, and what folds away."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((500, 64)).astype(np.float32),
        "inner": rng.standard_normal((64, 32)).astype(np.float32) / 8,
        "back": rng.standard_normal((32, 64)).astype(np.float32) / 8,
        "bias": rng.standard_normal(64).astype(np.float32),
        "shape": np.array([0, 0, 64]),
    }
    weights["head"] = np.ascontiguousarray(weights["table"].T)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"]),
        helper.make_node("Identity", ["rows"], ["same"]),
        helper.make_node("MatMul", ["same", "inner"], ["narrow"]),
        helper.make_node("Relu", ["narrow"], ["active"]),
        helper.make_node("MatMul", ["active", "back"], ["wide"]),
        helper.make_node("Add", ["wide", "bias"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["shaped"]),
        helper.make_node("MatMul", ["shaped", "head"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 3]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 500]),
    ]
    stored = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outputs_of(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": TOKENS})[0]


@pytest.fixture
def whole(tmp_path):
    """The network in one file, whatever the limit."""
    (tmp_path / "whole").mkdir()
    path = tmp_path / "whole" / "whole.onnx"
    path.write_bytes(a_language_model().SerializeToString())
    return path


@pytest.fixture
def pair(tmp_path, limited):
    (tmp_path / "pair").mkdir()
    path = tmp_path / "pair" / "pair.onnx"
    save(a_language_model(), path)
    return path


def test_a_model_above_the_limit_is_a_graph_and_one_file_that_is_named_by_its_content(pair, whole):
    (weights,) = weight_files(pair)
    assert weights.name == f"{hash_of_file(weights)}.data"
    assert pair.stat().st_size < 3000
    assert measure_bytes(pair) >= whole.stat().st_size - 3000
    np.testing.assert_array_equal(outputs_of(pair), outputs_of(whole))


def test_a_model_below_the_limit_is_one_file_with_the_bytes_of_protobuf(tmp_path, whole):
    save(a_language_model(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == a_language_model().SerializeToString(deterministic=True)
    assert weight_files(tmp_path / "m.onnx") == []


def test_equal_models_give_equal_files_and_their_hash_is_known_before(pair, tmp_path):
    assert hash_model(a_language_model()) == hash_of_file(pair)
    again = load(pair, "test")
    assert hash_model(again) == hash_of_file(pair)
    (tmp_path / "again").mkdir()
    save(again, tmp_path / "again" / "other.onnx")
    assert (tmp_path / "again" / "other.onnx").read_bytes() == pair.read_bytes()
    (weights,) = weight_files(tmp_path / "again" / "other.onnx")
    assert weights.samefile(*weight_files(pair))  # linked, not written again


def test_a_changed_weight_changes_the_hash_of_the_graph(pair):
    model = a_language_model()
    model.graph.initializer[0].raw_data = bytes(4) + model.graph.initializer[0].raw_data[4:]
    assert hash_model(model) != hash_of_file(pair)


def test_large_tensors_are_read_from_their_file_and_small_ones_are_in_the_graph(pair):
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in a_language_model().graph.initializer}
    for tensor in load(pair, "test").graph.initializer:
        np.testing.assert_array_equal(tensor_values(tensor), expected[tensor.name])
    graph = onnx.load_model(pair, load_external_data=False).graph
    assert [tensor.name for tensor in graph.initializer if not tensor.external_data] == ["bias", "shape"]


def test_a_pair_is_copied_and_moved_with_its_weights(pair, tmp_path):
    expected, sha256 = outputs_of(pair), hash_of_file(pair)
    for name in ("copied", "linked", "moved"):
        (tmp_path / name).mkdir()
    copy_model(pair, tmp_path / "copied" / "c.onnx")
    copy_model(pair, tmp_path / "linked" / "l.onnx", link_weights=True)
    move_model(pair, tmp_path / "moved" / "m.onnx")
    assert list((tmp_path / "pair").iterdir()) == []
    for path in (tmp_path / "copied" / "c.onnx", tmp_path / "linked" / "l.onnx", tmp_path / "moved" / "m.onnx"):
        np.testing.assert_array_equal(outputs_of(path), expected)
        assert is_unchanged(path, sha256)


def test_missing_short_and_changed_weights_are_found(pair, tmp_path):
    sha256 = hash_of_file(pair)
    (weights,) = weight_files(pair)
    content = weights.read_bytes()
    weights.write_bytes(b"\1" + content[1:])
    assert not is_unchanged(pair, sha256)
    weights.write_bytes(content[:-5000])
    with pytest.raises(StepError, match=r"\.data is too short"):
        load(pair, "test")
    weights.unlink()
    assert not has_all_parts(pair)
    with pytest.raises(StepError, match="No such file"):
        load(pair, "test")


@pytest.mark.parametrize("location", ["../x.data", "/etc/passwd", "weights.bin", f"../{'0' * 64}.data"])
def test_a_file_that_names_other_files_is_not_a_pair(pair, location):
    model = onnx.load_model(pair, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    pair.write_bytes(model.SerializeToString())
    assert weight_files(pair) == []
    with pytest.raises(StepError, match=r"keeps 4 tensors in other files \('table'\)"):
        load(pair, "test")


def test_the_facts_of_a_pair_are_those_of_the_single_file(pair, whole):
    found, expected = read_facts(pair), read_facts(whole)
    same = ("parameters", "nonzero_parameters", "weight_types", "macs", "opset", "ir_version", "operators", "inputs")
    assert [getattr(found, name) for name in same] == [getattr(expected, name) for name in same]
    assert (found.size_bytes, found.is_download_estimated) == (measure_bytes(pair), True)
    assert found.download_bytes == pytest.approx(expected.download_bytes, rel=0.05)
    tensors = {tensor.name: tensor.stored_bytes for tensor in list_stored_tensors(pair)}
    assert tensors["table"] == pytest.approx(500 * 64 * 4, rel=0.01)


STEPS = {
    "simplify": (Simplify(),),
    "denormals": (FlushDenormals(),),
    "compact": (Compact(),),
    "float16": (Simplify(), FlushDenormals(), Float16(), Compact()),
    "8 bits": (Simplify(), QuantizeWeights(bits=8, block=32), Compact()),
    "4 bits": (QuantizeWeights(bits=4, block=32), Compact()),
    "stored": (Simplify(), StoreWeights(), Compact()),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_gives_the_same_from_a_pair_as_from_one_file(name, pair, whole, tmp_path, monkeypatch):
    apply_steps(STEPS[name], pair, tmp_path / "pair" / "done.onnx", **LIMITS)
    monkeypatch.delenv("_EDGEOPT_MAX_FILE_BYTES")
    apply_steps(STEPS[name], whole, tmp_path / "whole" / "done.onnx", **LIMITS)
    found, expected = tmp_path / "pair" / "done.onnx", tmp_path / "whole" / "done.onnx"
    np.testing.assert_allclose(outputs_of(found), outputs_of(expected), rtol=1e-5, atol=1e-4)
    if Simplify() not in STEPS[name]:  # which merges products with sums only if it sees their weights
        assert read_facts(found).operators == read_facts(expected).operators
    assert measure_bytes(found) < 1.1 * measure_bytes(expected) + 3 * 4096


def test_what_fits_into_one_file_is_one_again(pair, tmp_path):
    target = tmp_path / "pair" / "small.onnx"
    apply_steps(STEPS["4 bits"], pair, target, **LIMITS)
    assert weight_files(target) == []
    assert target.stat().st_size < LIMIT_BYTES


def test_denormal_weights_of_a_pair_become_zero(tmp_path, limited):
    model = a_language_model()
    inner = next(tensor for tensor in model.graph.initializer if tensor.name == "inner")
    inner.CopyFrom(numpy_helper.from_array(np.full((64, 32), 1e-40, np.float32), "inner"))
    save(model, tmp_path / "m.onnx")
    (result,) = apply_steps((FlushDenormals(),), tmp_path / "m.onnx", tmp_path / "done.onnx", **LIMITS)
    assert result.notes == ("flush-denormals: 2048 weights set to zero",)
    stored = {tensor.name: tensor_values(tensor) for tensor in load(tmp_path / "done.onnx", "test").graph.initializer}
    assert not stored["inner"].any()


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_in_few_bits_are_counted_alike_in_a_pair_and_in_one_file(bits, whole, tmp_path, monkeypatch):
    apply_steps((QuantizeWeights(bits=bits, block=32),), whole, tmp_path / "whole" / "done.onnx", **LIMITS)
    apply_steps((StoreWeights(),), whole, tmp_path / "whole" / "stored.onnx", **LIMITS)
    monkeypatch.setenv("_EDGEOPT_MAX_FILE_BYTES", "4000")
    monkeypatch.setattr(parameters, "_PART_VALUES", 100)
    for name in ("done", "stored"):
        single, other = tmp_path / "whole" / f"{name}.onnx", tmp_path / f"{name}.onnx"
        save(load(single, "test"), other)
        assert weight_files(other)
        found, expected = read_facts(other), read_facts(single)
        assert found.parameters == expected.parameters == 2 * 500 * 64 + 2 * 64 * 32 + 64
        assert found.nonzero_parameters == expected.nonzero_parameters
        assert (found.weight_types, found.macs) == (expected.weight_types, expected.macs)
        assert is_quantized(load(other, "test"))


def test_unseen_rows_of_a_pair_are_dropped_like_those_of_one_file(pair, whole, tmp_path):
    done = []
    for source in (pair, whole):
        model = load(source, "test")
        lift_constants(model.graph)
        tables, _ = find_id_tables(model.graph)
        reader = IdReader(model, tables)
        reader.read({"x": TOKENS})
        step, _ = choose_rows(tables, reader.seen, {})
        assert [(kept.rows, kept.kept) for kept in step.tables.values()] == [(500, 6)]
        target = source.with_name("cut.onnx")
        apply_steps((step, Compact()), source, target, **LIMITS)
        np.testing.assert_allclose(outputs_of(target), outputs_of(source), rtol=1e-5, atol=1e-4)
        done.append(read_facts(target))
    assert done[0].parameters == done[1].parameters < read_facts(whole).parameters


def test_ids_that_are_looked_up_in_a_large_table_first_are_read_from_a_pair(tmp_path, limited):
    model = a_language_model()
    places = np.arange(500)[::-1].copy()
    model.graph.initializer.append(numpy_helper.from_array(places, "places"))
    model.graph.node.insert(0, helper.make_node("Gather", ["places", "x"], ["moved"]))
    model.graph.node.insert(1, helper.make_node("Add", ["x", "moved"], ["ids"]))  # 499 for every id
    model.graph.node[2].input[1] = "ids"
    save(model, tmp_path / "m.onnx")
    loaded = load(tmp_path / "m.onnx", "test")
    assert any(tensor.name == "places" and is_external(tensor) for tensor in loaded.graph.initializer)
    reader = IdReader(loaded, find_id_tables(loaded.graph)[0])
    reader.read({"x": TOKENS})
    assert [np.flatnonzero(seen).tolist() for seen in reader.seen.values()] == [[499]]


def test_functions_of_a_pair_are_written_out_and_nodes_go(tmp_path, limited):
    model = a_language_model()
    twice = helper.make_function(
        "own", "Twice", ["a"], ["c"], [helper.make_node("Add", ["a", "a"], ["c"])], [helper.make_opsetid("", 17)]
    )
    model.functions.append(twice)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[3].CopyFrom(helper.make_node("Twice", ["narrow"], ["active"], domain="own"))
    save(model, tmp_path / "m.onnx")
    (result,) = apply_steps((Simplify(),), tmp_path / "m.onnx", tmp_path / "done.onnx", **LIMITS)
    assert result.notes[0] == "simplify: 1 functions of the file written as the nodes they consist of"
    assert result.notes[1].endswith("nodes")
    assert weight_files(tmp_path / "done.onnx")
    np.testing.assert_allclose(outputs_of(tmp_path / "done.onnx"), outputs_of(tmp_path / "m.onnx"), rtol=1e-5)


def test_a_pair_is_converted_to_another_operator_set(pair, tmp_path):
    converted, reason = convert_operator_set(load(pair, "test"), 16, None)
    assert converted is not None, reason
    save(converted, tmp_path / "older.onnx")
    assert (read_facts(tmp_path / "older.onnx").opset, len(weight_files(tmp_path / "older.onnx"))) == (16, 1)
    np.testing.assert_array_equal(outputs_of(tmp_path / "older.onnx"), outputs_of(pair))


def test_a_fixed_batch_of_a_pair_becomes_dynamic_and_the_user_file_stays_what_is_read(tmp_path, limited):
    model = a_language_model()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "given.onnx", save_as_external_data=True, location="given.bin")
    given = read_given(tmp_path / "given.onnx")
    opened = with_dynamic_batch(given, 2)
    assert (opened.opened_batch, opened.content) == (1, None)
    assert given.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    (tmp_path / "stages").mkdir()
    write_given(opened, tmp_path / "stages" / "opened.onnx")
    assert outputs_of(tmp_path / "stages" / "opened.onnx").shape == (2, 3, 500)
    for path in (tmp_path / "stages").iterdir():
        path.unlink()
    assert read_facts_of(opened.model) == 2 * 500 * 64 + 2 * 64 * 32 + 64


def read_facts_of(model):
    return parameters.count_parameters(model).total

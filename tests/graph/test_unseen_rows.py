"""Rows of tables that no training sample reads go; the others are looked up bit by bit as before."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.facts import read_facts
from edgeopt.graph.model import lift_constants
from edgeopt.graph.weights.id_tables import IdReader, find_id_tables
from edgeopt.graph.weights.unseen_rows import choose_rows, pack_rows, unpack_rows
from edgeopt.records.recipe import Compact, DropUnseenRows, QuantizeWeights, Simplify, StoreWeights

ROWS, WIDTH = 600, 16


def a_model(nodes, shape=("batch", 6), kind=TensorProto.INT64, table=None, others=()):
    """Return a model of these nodes: ``ids`` in, ``y`` out, and a table ``words``."""
    random = np.random.default_rng(0)
    table = random.normal(size=(ROWS, WIDTH)).astype(np.float32) if table is None else table
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", kind, shape)],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(table.dtype), None)],
        [numpy_helper.from_array(table, "words"), *others],
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    )


def constant(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.array(values, dtype), name)


def run(model, ids):
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else model.SerializeToString())
    return session.run(None, {"ids": ids})[0]


def seen_by(model, *batches):
    lift_constants(model.graph)
    tables, reasons = find_id_tables(model.graph)
    reader = IdReader(model, tables)
    for ids in batches:
        reader.read({"ids": ids})
    return tables, reader.seen, reasons


def cut(model, folder, *batches, unknown=None, then=()):
    """Return the model without the rows that these batches do not read."""
    tables, seen, reasons = seen_by(model, *batches)
    step, others = choose_rows(tables, seen, unknown or {})
    assert step is not None, (reasons, others)
    onnx.save(model, folder / "before.onnx")
    results = apply_steps(
        (step, *then), folder / "before.onnx", folder / "after.onnx", calibration=None, max_opset=20, max_ir=9
    )
    onnx.checker.check_model(folder / "after.onnx", full_check=True)
    return onnx.load(folder / "after.onnx"), step, results


LOOKUP = helper.make_node("Gather", ["words", "ids"], ["y"], "lookup")
IDS = np.random.default_rng(1).choice(np.arange(0, ROWS, 7), (40, 6))


def test_seen_ids_read_the_same_bits_and_others_the_mean_of_the_dropped_rows(tmp_path):
    before = a_model([LOOKUP])
    table = numpy_helper.to_array(before.graph.initializer[0])
    after, step, results = cut(before, tmp_path, IDS)
    kept = step.tables["words"]
    own = np.isin(np.arange(ROWS), IDS)
    assert (kept.rows, kept.kept, kept.inputs) == (ROWS, own.sum(), ("ids",))
    assert (unpack_rows(kept.ids, ROWS) == own).all()
    assert (run(before, IDS) == run(after, IDS)).all()
    assert (run(before, IDS - ROWS) == run(after, IDS - ROWS)).all()  # negative ids count from the end
    others = np.setdiff1d(np.arange(ROWS), IDS)[:12].reshape(2, 6)
    mean = table[~own].astype(np.float64).mean(0).astype(np.float32)
    assert (run(after, others) == mean).all()
    assert (tmp_path / "after.onnx").stat().st_size < (tmp_path / "before.onnx").stat().st_size / 3
    assert results[0].notes == (f"drop-unseen-rows: 'words': {kept.sentence}",)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(after, np.full((1, 6), ROWS))


def test_others_read_the_row_of_a_named_id_that_the_data_lack(tmp_path):
    before = a_model([LOOKUP])
    after, step, _ = cut(before, tmp_path, IDS, unknown={"ids": 3})
    assert unpack_rows(step.tables["words"].ids, ROWS)[3]
    table = numpy_helper.to_array(before.graph.initializer[0])
    assert (run(after, np.full((1, 6), 5)) == table[3]).all()
    assert "every other id reads the row of id 3" in step.tables["words"].sentence


CHAINS = {
    "cast from float": ([helper.make_node("Cast", ["ids"], ["i"], to=TensorProto.INT64)], TensorProto.FLOAT),
    "numbers added for each column": ([helper.make_node("Add", ["ids", "offsets"], ["i"])], TensorProto.INT64),
    "one column": ([helper.make_node("Gather", ["ids", "column"], ["i"], axis=1)], TensorProto.INT64),
    "moved": (
        [
            helper.make_node("Reshape", ["ids", "flat"], ["f"]),
            helper.make_node("Unsqueeze", ["f", "first"], ["i"]),
        ],
        TensorProto.INT64,
    ),
    "int32": ([helper.make_node("Identity", ["ids"], ["i"])], TensorProto.INT32),
}


@pytest.mark.parametrize("name", CHAINS)
def test_ids_may_be_moved_cast_cut_and_shifted_first(name, tmp_path):
    nodes, kind = CHAINS[name]
    others = [
        constant("offsets", [0, 0, 3, 4, 0, 1]),
        constant("column", [2]),
        constant("first", [0]),
        constant("flat", [-1]),
    ]
    before = a_model([*nodes, helper.make_node("Gather", ["words", "i"], ["y"])], kind=kind, others=others)
    ids = IDS.astype(helper.tensor_dtype_to_np_dtype(kind))
    after, step, _ = cut(before, tmp_path, ids[:20], ids[20:])
    assert (run(before, ids) == run(after, ids)).all()
    shifted = IDS + np.array([0, 0, 3, 4, 0, 1])
    expected = {"one column": IDS[:, 2], "numbers added for each column": shifted}.get(name, IDS)
    assert step.tables["words"].kept == len(np.unique(expected))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_tables_behind_a_cast_and_of_other_floats(dtype, tmp_path):
    table = np.random.default_rng(0).normal(size=(ROWS, WIDTH, 2)).astype(dtype)
    cast = helper.make_node("Cast", ["words"], ["wide"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    before = a_model([cast, helper.make_node("Gather", ["wide", "ids"], ["y"], axis=-3)], table=table)
    after, _, _ = cut(before, tmp_path, IDS)
    assert (run(before, IDS) == run(after, IDS)).all()


def test_tables_of_the_same_ids_share_their_places(tmp_path):
    bias = numpy_helper.from_array(np.random.default_rng(2).normal(size=(ROWS, 1)).astype(np.float32), "bias")
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["a"]),
        helper.make_node("Gather", ["bias", "ids"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    before = a_model(nodes, others=[bias])
    after, step, _ = cut(before, tmp_path, IDS)
    assert set(step.tables) == {"words", "bias"}
    assert (run(before, IDS) == run(after, IDS)).all()
    assert read_facts(tmp_path / "after.onnx").operators == {"Gather": 3, "Cast": 1, "Add": 1}


READ_OTHERWISE = {
    "Transpose reads it too": [
        helper.make_node("Gather", ["words", "ids"], ["e"]),
        helper.make_node("Transpose", ["words"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"]),
    ],
    "its rows are not read at the ids of an input": [
        helper.make_node("Shape", ["ids"], ["s"]),
        helper.make_node("Gather", ["words", "s"], ["y"]),
    ],
}


@pytest.mark.parametrize(("reason", "nodes"), READ_OTHERWISE.items(), ids=str)
def test_a_table_that_is_read_in_another_way_keeps_its_rows(reason, nodes):
    tables, _, reasons = seen_by(a_model(nodes))
    assert tables == []
    assert reasons["words"] == reason


def test_nothing_is_dropped_if_that_saves_no_bytes():
    tables, seen, _ = seen_by(a_model([LOOKUP]), np.arange(ROWS - 6)[None, : ROWS - 6].reshape(-1, 6))
    step, reasons = choose_rows(tables, seen, {})
    assert step is None
    assert reasons == {"words": "594 of its 600 rows are read, so dropping the others saves nothing"}


def test_an_unknown_id_has_to_be_a_row():
    tables, seen, _ = seen_by(a_model([LOOKUP]), IDS)
    assert choose_rows(tables, seen, {"ids": ROWS})[1] == {"words": "the unknown id 600 has no row: there are 600"}


def test_an_id_without_a_row_is_named():
    with pytest.raises(StepError, match="an id of 'ids' has no row in 'words'"):
        seen_by(a_model([LOOKUP]), np.full((1, 6), -ROWS - 1))


@pytest.mark.parametrize("then", [Simplify(), StoreWeights(), QuantizeWeights(bits=8, block=32)], ids=str)
def test_other_steps_follow(then, tmp_path):
    before = a_model([LOOKUP], table=np.random.default_rng(0).normal(size=(ROWS, 64)).astype(np.float32))
    after, _, _ = cut(before, tmp_path, IDS, then=(then, Compact()))
    assert np.abs(run(before, IDS) - run(after, IDS)).max() < 0.02


def test_bits_as_text():
    bits = np.random.default_rng(0).random(1001) < 0.5
    assert (unpack_rows(pack_rows(bits), 1001) == bits).all()


def test_a_step_for_another_graph_is_refused(tmp_path):
    _, step, _ = cut(a_model([LOOKUP]), tmp_path, IDS)
    other = a_model([LOOKUP], table=np.zeros((7, 2), np.float32))
    onnx.save(other, tmp_path / "other.onnx")
    assert isinstance(step, DropUnseenRows)
    with pytest.raises(StepError, match="no table 'words' of 600 rows"):
        apply_steps((step,), tmp_path / "other.onnx", tmp_path / "o.onnx", calibration=None, max_opset=20, max_ir=9)

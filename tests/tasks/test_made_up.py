"""Made-up inputs: of a kind and a size that fit the graph, so that a file can be run without any."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_files import save, value

from edgeopt.errors import DataError, InputError
from edgeopt.graph.given.values import model_inputs
from edgeopt.tasks.onnx_data.ids import check_ids, find_id_limits
from edgeopt.tasks.onnx_data.made_up import make_up_inputs
from edgeopt.tasks.onnx_data.samples import SampleGroup
from edgeopt.tasks.onnx_data.specs import declared_axes, describe_inputs


def made_up(path, shapes=None, batch_size=2):
    graph = onnx.load(path).graph
    specs = describe_inputs(model_inputs(graph))
    return make_up_inputs(graph, specs, declared_axes(specs), batch_size, shapes or {})


def table(name, rows):
    return numpy_helper.from_array(np.ones((rows, 4), np.float32), name)


@pytest.fixture
def encoder(tmp_path):
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["w"]),
        helper.make_node("Constant", [], ["kinds"], value=table("", 2)),
        helper.make_node("Cast", ["token_type_ids"], ["types"], to=7),
        helper.make_node("Gather", ["kinds", "types"], ["t"]),
        helper.make_node("Add", ["w", "t"], ["y"]),
    ]
    inputs = [value(name, ["batch", "seq"], "int64") for name in ("ids", "token_type_ids", "attention_mask")]
    return save(tmp_path / "m.onnx", nodes, inputs, [value("y", None)], [table("words", 50)])


def test_ids_are_within_the_table_that_they_index_and_masks_are_ones(encoder):
    assert find_id_limits(onnx.load(encoder).graph) == {"ids": 50, "token_type_ids": 2}
    made = made_up(encoder)
    assert {name: array.shape for name, array in made.arrays.items()} == dict.fromkeys(made.arrays, (2, 128))
    assert 2 < made.arrays["ids"].max() < 50
    assert made.arrays["token_type_ids"].max() == 1
    assert (made.arrays["attention_mask"] == 1).all()
    assert made.note == (
        "made-up inputs: 'ids' ids below 50, shape 2x128; 'token_type_ids' ids below 2, shape 2x128; "
        "'attention_mask' ones, shape 2x128"
    )


def test_the_users_shape_counts_for_every_input_with_that_dimension(encoder):
    assert {array.shape for array in made_up(encoder, {"ids": (1, 7)}).arrays.values()} == {(2, 7)}
    with pytest.raises(InputError, match=r"--shape gives 'ids' 3 dimensions, but the model takes \[batch, seq\]"):
        made_up(encoder, {"ids": (1, 7, 1)})


@pytest.mark.parametrize(
    ("shape", "kind", "found"),
    [
        (["n", 3, "h", "w"], "float32", (2, 3, 224, 224)),
        (["n", "h", "w", 3], "uint8", (2, 224, 224, 3)),
        (["n", "samples"], "float32", (2, 16000)),
        (["n", 80, "frames"], "float32", (2, 80, 128)),
        ([1, "t", 8], "float32", (1, 128, 8)),
        ([2, "batch", 8], "float32", (2, 2, 8)),
        ([], "int64", ()),
    ],
)
def test_sizes_are_the_usual_ones_of_the_kind(tmp_path, shape, kind, found):
    path = save(tmp_path / "m.onnx", [], [value("x", shape, kind)], [value("x", shape, kind)])
    assert made_up(path).arrays["x"].shape == found


def test_a_cache_and_the_sum_of_two_dimensions_fit_each_other(tmp_path):
    inputs = [
        value("ids", ["batch", "seq"], "int64"),
        value("past", ["batch", 2, "past_len", 4]),
        value("mask", ["batch", "past_len + seq"], "int64"),
    ]
    made = made_up(save(tmp_path / "m.onnx", [], inputs, inputs[:1]), batch_size=1).arrays
    assert (made["past"].shape, made["mask"].shape) == ((1, 2, 16, 4), (1, 144))


def test_an_input_that_would_not_fit_into_memory_is_refused(tmp_path):
    path = save(tmp_path / "m.onnx", [], [value("x", ["n", 2**40])], [value("x", ["n", 2**40])])
    with pytest.raises(InputError, match=r"more than edgeopt makes up\. Pass --inputs"):
        made_up(path)


@pytest.mark.parametrize(("name", "wrong"), [("ids", 50), ("ids", -51), ("token_type_ids", 2)])
def test_ids_of_the_user_that_are_no_row_are_named(encoder, name, wrong):
    arrays = {one: np.zeros((3, 4), np.int64) for one in ("ids", "token_type_ids", "attention_mask")}
    arrays["ids"][0, 1] = -1  # the last row
    arrays["attention_mask"][0, 0] = 99
    group, graph = SampleGroup(arrays, None, 3), onnx.load(encoder).graph
    check_ids("in.npz", graph, [group])
    arrays[name][1, 2] = wrong
    rows = {"ids": 50, "token_type_ids": 2}[name]
    with pytest.raises(DataError, match=rf"in\.npz: '{name}' has 1 ids .* {wrong} in row 1: it has {rows} rows"):
        check_ids("in.npz", graph, [group])

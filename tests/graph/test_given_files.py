"""A model that the user gives: weights in other files, and files that cannot be read."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from edgeopt.errors import TaskError
from edgeopt.graph.given.files import baseline_of, hash_given, one_file, read_given
from edgeopt.graph.model import load, read_batch_axes
from edgeopt.model_files.layout import hash_of_file, weight_files
from edgeopt.model_files.tensors import is_external, tensor_values

WEIGHTS = {"w": np.arange(12, dtype=np.float32).reshape(4, 3), "b": np.array([1, 2, 3], np.float32)}


def a_model(*, batch="n", ir=8) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    sizes = {"x": 4, "y": 3}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, size]) for name, size in sizes.items()]
    weights = [numpy_helper.from_array(values, name) for name, values in WEIGHTS.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir)


def write_in_two_files(path: Path, location: str = "model.data", **changes: object) -> Path:
    """Write the model, and its weights one after the other into another file."""
    model, offset = a_model(), 0
    data = b"".join(tensor.raw_data for tensor in model.graph.initializer)
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        set_external_data(tensor, **{"location": location, "offset": offset, "length": size} | changes)
        tensor.ClearField("raw_data")
        offset += size
    path.write_bytes(model.SerializeToString())
    target = path.parent / location
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(data)
    return path


def values_of(model: onnx.ModelProto) -> dict[str, list[object]]:
    return {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer}


@pytest.mark.parametrize("location", ["model.data", "weights/part.bin"])
def test_weights_in_other_files_are_packed_and_their_bytes_are_counted(tmp_path, location):
    path = write_in_two_files(tmp_path / "m.onnx", location)
    given = read_given(path)
    assert values_of(given.model) == {name: values.tolist() for name, values in WEIGHTS.items()}
    assert given.other_files == (location,)
    assert given.size_bytes == path.stat().st_size + (tmp_path / location).stat().st_size
    with one_file(path, given) as packed:
        assert packed != path
        assert values_of(onnx.load_model(packed, load_external_data=False)) == values_of(given.model)
    assert not packed.exists()


def test_a_file_that_is_already_whole_is_taken_byte_for_byte(tmp_path):
    (tmp_path / "m.onnx").write_bytes(a_model().SerializeToString())
    assert read_given(tmp_path / "m.onnx").content == (tmp_path / "m.onnx").read_bytes()
    with one_file(tmp_path / "m.onnx", read_given(tmp_path / "m.onnx")) as path:
        assert path == tmp_path / "m.onnx"


def test_links_to_a_cache_are_followed(tmp_path):
    (tmp_path / "cache").mkdir()
    write_in_two_files(tmp_path / "cache" / "m.onnx")
    (tmp_path / "here").mkdir()
    for name in ("m.onnx", "model.data"):
        (tmp_path / "here" / name).symlink_to(tmp_path / "cache" / name)
    assert values_of(read_given(tmp_path / "here" / "m.onnx").model)["b"] == [1, 2, 3]


def test_a_constant_in_another_file_is_found_too(tmp_path):
    model = a_model()
    tensor = numpy_helper.from_array(WEIGHTS["b"], "value")
    (tmp_path / "c.bin").write_bytes(tensor.raw_data)
    set_external_data(tensor, "c.bin")
    tensor.ClearField("raw_data")
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.graph.node.insert(0, node)
    model.graph.node[2].input[1] = "c"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (found,) = read_given(tmp_path / "m.onnx").model.graph.node[0].attribute
    assert numpy_helper.to_array(found.t).tolist() == [1, 2, 3]


def test_a_missing_file_of_weights_is_named(tmp_path):
    path = write_in_two_files(tmp_path / "m.onnx")
    (tmp_path / "model.data").unlink()
    with pytest.raises(TaskError, match=r"m\.onnx keeps weights \('w' and 1 more\) in .*model\.data, and there is no"):
        read_given(path)


@pytest.mark.parametrize("location", ["../model.data", "/etc/hostname", "a/../../model.data", "C:\\weights.bin", ""])
def test_weights_outside_the_models_folder_are_refused(tmp_path, location):
    (tmp_path / "model.data").write_bytes(bytes(60))
    (tmp_path / "a").mkdir()
    path = write_in_two_files(tmp_path / "a" / "m.onnx")
    model = onnx.load_model(path, load_external_data=False)
    for tensor in model.graph.initializer:
        set_external_data_location(tensor, location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(TaskError, match=r"keeps the weights of 'w' in .* outside the model's folder"):
        read_given(path)


def set_external_data_location(tensor: TensorProto, location: str) -> None:
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location


def test_a_file_of_weights_that_was_cut_is_refused(tmp_path):
    path = write_in_two_files(tmp_path / "m.onnx")
    (tmp_path / "model.data").write_bytes(bytes(50))
    with pytest.raises(TaskError, match=r"model\.data is too short: it has 50 bytes, .* 'b' are in the bytes 48 to 60"):
        read_given(path)


@pytest.mark.parametrize("changes", [{"offset": 40}, {"offset": -4}, {"length": 1000}, {"length": 4}])
def test_places_that_do_not_fit_the_tensor_are_refused(tmp_path, changes):
    with pytest.raises(TaskError, match=r"m\.onnx is damaged|model\.data is too short"):
        read_given(write_in_two_files(tmp_path / "m.onnx", **changes))


def test_a_place_that_is_not_a_number_is_refused(tmp_path):
    path = write_in_two_files(tmp_path / "m.onnx")
    model = onnx.load_model(path, load_external_data=False)
    model.graph.initializer[0].external_data[1].value = "here"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(TaskError, match=r"m\.onnx is damaged: tensor 'w'"):
        read_given(path)


def test_a_file_beyond_protobufs_limit_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.touch()
    os.truncate(path, 2**31)  # a sparse file
    with pytest.raises(TaskError, match=r"m\.onnx has 2\.15 GB, .* Export it again with external data"):
        read_given(path)


@pytest.mark.parametrize("location", ["model.data", "weights/part.bin"])
def test_weights_too_large_for_one_file_stay_in_the_users_and_are_written_as_a_pair(tmp_path, monkeypatch, location):
    values = np.random.default_rng(0).standard_normal((256, 32)).astype(np.float32)
    monkeypatch.setitem(WEIGHTS, "w", values)
    path = write_in_two_files(tmp_path / "m.onnx", location)
    monkeypatch.setenv("_EDGEOPT_MAX_FILE_BYTES", "20000")
    given = read_given(path)
    assert (given.content, given.other_files) == (None, (location,))
    assert given.size_bytes == path.stat().st_size + (tmp_path / location).stat().st_size
    assert [tensor.name for tensor in given.model.graph.initializer if is_external(tensor)] == ["w"]
    with one_file(path, given) as packed:
        (weights,) = weight_files(packed)
        assert weights.stat().st_size == values.nbytes
        assert hash_given(given) == hash_of_file(packed)
        stored = {tensor.name: tensor_values(tensor) for tensor in load(packed, "test").graph.initializer}
        np.testing.assert_array_equal(stored["w"], values)
        np.testing.assert_array_equal(stored["b"], WEIGHTS["b"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"not a protobuf", "cannot be read as an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString(), "it has no graph"),
    ],
)
def test_a_file_that_is_not_a_model_is_named(tmp_path, content, reason):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(TaskError, match=rf"m\.onnx .*{reason}"):
        read_given(tmp_path / "m.onnx")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(TaskError, match=r"there is no file .*m\.onnx"):
        read_given(tmp_path / "m.onnx")
    with pytest.raises(TaskError, match="is a folder"):
        read_given(tmp_path)


@pytest.mark.parametrize("batch", [-1, 0])
def test_a_batch_that_was_written_as_a_number_below_one_is_dynamic(tmp_path, batch):
    (tmp_path / "m.onnx").write_bytes(a_model(batch=batch).SerializeToString())
    graph = read_given(tmp_path / "m.onnx").model.graph
    for value in (graph.input[0], graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("name", ["?", "unk", "None", "*"])
def test_a_name_that_stands_for_none_is_no_name(tmp_path, name):
    model = a_model()
    for axis in (0, 1):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    dims = read_given(tmp_path / "m.onnx").model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims[:2]] == ["batch", ""]


def test_the_batch_of_a_state_stays_known_if_it_is_called_like_any_other_unknown_size(tmp_path):
    model = a_model()
    first = model.graph.input[0].type.tensor_type.shape.dim
    first[0].dim_param = "?"
    state = helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, "?", 64])
    model.graph.input.append(state)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    graph = read_given(tmp_path / "m.onnx").model.graph
    assert read_batch_axes(graph) == {graph.input[0].name: 0, "h": 1}


def test_an_output_with_a_batch_gets_no_second_one(tmp_path):
    shape = ["?", "batch", 80]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "steps first", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), tmp_path / "m.onnx")
    graph = read_given(tmp_path / "m.onnx").model.graph
    for value in (graph.input[0], graph.output[0]):
        assert [dim.dim_param for dim in value.type.tensor_type.shape.dim] == ["", "batch", ""]


def test_only_a_header_that_is_too_new_is_lowered(tmp_path):
    (tmp_path / "m.onnx").write_bytes(a_model(ir=10).SerializeToString())
    given = read_given(tmp_path / "m.onnx")
    assert baseline_of(given, 10).content == given.content
    assert onnx.ModelProto.FromString(baseline_of(given, 8).content).ir_version <= 8


def test_nodes_are_put_into_the_order_of_computation_inside_branches_too(tmp_path):
    """Converters to float16 append casts at the end; ONNX Runtime sorts nodes, and ONNX's checker refuses the file."""
    one = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    steps = [helper.make_node("Neg", ["a"], ["t"]), helper.make_node("Abs", ["y"], ["a"])]
    then = helper.make_graph(steps, "then", [], [one])
    other = helper.make_graph([helper.make_node("Identity", ["y"], ["t"])], "other", [], [one])
    model = a_model()
    model.graph.node.insert(0, helper.make_node("If", ["is_open"], ["z"], then_branch=then, else_branch=other))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "is_open"))
    model.graph.node.extend([model.graph.node[1]])  # the product comes last
    del model.graph.node[1]
    model.graph.output[0].name = "z"
    onnx.save(model, tmp_path / "model.onnx")
    given = read_given(tmp_path / "model.onnx")
    assert given.is_changed
    assert [node.op_type for node in given.model.graph.node] == ["MatMul", "Add", "If"]
    onnx.checker.check_model(given.model)
    assert not read_given(write_sorted(given.model, tmp_path / "sorted.onnx")).is_changed


def write_sorted(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path

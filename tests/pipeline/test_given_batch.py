"""A given file with a fixed batch on a target that measures another batch size."""

from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from builders import a_budget, a_profile
from onnx import TensorProto, helper, numpy_helper
from stub_builds import a_stub_build
from tiny_models import a_run_target

from edgeopt.errors import TaskError
from edgeopt.graph.given.files import hash_given, read_given, write_given
from edgeopt.model_files.layout import has_all_parts, weight_files
from edgeopt.pipeline.artifacts.given_batch import check_opened_batch
from edgeopt.tasks.given.onnx_file import OnnxTask

_node = helper.make_node


def a_file(path, nodes, stored, batch=1):
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", TensorProto.FLOAT, [batch, 4, 6])], [value("y", TensorProto.FLOAT, [batch, 5])]
    weights = [numpy_helper.from_array(np.asarray(values), name) for name, values in stored.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.savez(path.with_suffix(".npz"), x=np.random.RandomState(0).standard_normal((24, 4, 6)).astype(np.float32))
    return path


W = np.random.RandomState(1).standard_normal((24, 5)).astype(np.float32)
FLAT = [_node("Reshape", ["x", "shape"], ["f"]), _node("MatMul", ["f", "w"], ["m"])]


def checked(path, measured=8):
    task = OnnxTask(path, path.with_suffix(".npz"), batch_size=measured)
    opened = path.with_name("opened.onnx")
    write_given(task.given, opened)
    build = a_stub_build(
        budget=msgspec.structs.replace(a_budget(), batch_size=measured),
        workspace=SimpleNamespace(folder=lambda name: path.parent),
    )
    build.run_target = a_run_target(a_profile())
    return task, check_opened_batch(build, task, opened)


@pytest.mark.parametrize("shape", [[1, -1], [1, 24]])
def test_a_batch_of_1_becomes_dynamic_if_each_sample_keeps_its_outputs(shape, tmp_path):
    nodes = [*FLAT, _node("Softmax", ["m"], ["y"], axis=1)]
    task, notes = checked(a_file(tmp_path / "m.onnx", nodes, {"shape": np.array(shape), "w": W}))
    assert task.fixed_batch is None
    assert notes == (
        "the file takes 1 sample at a time; its batch was made dynamic, and 8 samples in batches of 2 and more have "
        "the same outputs as before",
    )
    assert list(tmp_path.glob("fixed-*")) == []


def test_so_does_a_batch_of_4(tmp_path):
    nodes = [*FLAT, _node("Relu", ["m"], ["y"])]
    task, notes = checked(a_file(tmp_path / "m.onnx", nodes, {"shape": np.array([4, -1]), "w": W}, batch=4))
    assert task.fixed_batch is None
    assert notes[0].startswith("the file takes 4 samples at a time; its batch was made dynamic")


def test_so_does_that_of_a_file_with_its_weights_in_another_one(tmp_path, monkeypatch):
    nodes = [*FLAT, _node("MatMul", ["m", "v"], ["wide"]), _node("MatMul", ["wide", "u"], ["y"])]
    stored = {
        "shape": np.array([1, -1]),
        "w": W,
        "v": np.ones((5, 300), np.float32),
        "u": np.ones((300, 5), np.float32),
    }
    path = a_file(tmp_path / "m.onnx", nodes, stored)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.bin")
    monkeypatch.setenv("_EDGEOPT_MAX_FILE_BYTES", "4000")
    task, notes = checked(path)
    assert (task.given.content, task.fixed_batch) == (None, None)
    assert notes[0].startswith("the file takes 1 sample at a time; its batch was made dynamic")
    assert weight_files(tmp_path / "opened.onnx")
    assert has_all_parts(tmp_path / "opened.onnx")


def test_a_file_that_takes_the_measured_batch_stays_as_it_is(tmp_path):
    nodes = [*FLAT, _node("Relu", ["m"], ["y"])]
    task, notes = checked(a_file(tmp_path / "m.onnx", nodes, {"shape": np.array([1, -1]), "w": W}), measured=1)
    assert (task.fixed_batch, notes, task.given.is_changed) == (1, (), False)


def test_samples_that_change_one_another_are_a_reason_to_refuse(tmp_path):
    nodes = [*FLAT, _node("Softmax", ["m"], ["y"], axis=0)]
    path = a_file(tmp_path / "m.onnx", nodes, {"shape": np.array([1, -1]), "w": W})
    reason = (
        r"takes 1 sample at a time, but the target's latency is that of 8\. With a dynamic batch in its place, output "
        r"'y' of a sample is not the same in a batch of 2\. Export it with a dynamic batch, or set batch_size = 1 under"
    )
    with pytest.raises(TaskError, match=reason):
        checked(path)


def test_so_is_a_size_inside_the_graph(tmp_path):
    nodes = [*FLAT, _node("Concat", ["m", "rest"], ["c"], axis=1), _node("Slice", ["c", "from", "to", "axis"], ["y"])]
    stored = {"rest": np.ones((1, 3), np.float32), "from": np.array([0]), "to": np.array([5]), "axis": np.array([1])}
    path = a_file(tmp_path / "m.onnx", nodes, {"shape": np.array([1, -1]), "w": W, **stored})
    with pytest.raises(TaskError, match=r"With a dynamic batch in its place, it does not run \(.*m\.onnx"):
        checked(path)


def test_the_file_is_known_by_what_was_read_though_its_batch_becomes_dynamic(tmp_path):
    path = a_file(tmp_path / "m.onnx", [*FLAT, _node("Relu", ["m"], ["y"])], {"shape": np.array([1, -1]), "w": W})
    task = OnnxTask(path, path.with_suffix(".npz"), batch_size=8)
    assert task.given.opened_batch == 1
    assert task.file_sha256 == hash_given(read_given(path)) != task.sha256

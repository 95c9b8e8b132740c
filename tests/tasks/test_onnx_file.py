import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt.errors import DataError, TaskError
from edgeopt.tasks.onnx_file import OnnxTask, agreement


@pytest.fixture
def model(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_inputs_and_labels_come_from_the_file(model, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((40, 3), np.float32), labels=np.arange(40) % 3)
    task = OnnxTask(model, tmp_path / "data.npz")
    assert [len(batch["x"]) for batch in task.batches()] == [32, 8]
    assert [len(targets) for targets in task.target_batches()] == [32, 8]
    assert task.scored_by == "accuracy"


def test_without_data_the_inputs_are_random_and_it_is_said(model):
    task = OnnxTask(model, None)
    assert task.scored_by == "agreement with the given file's outputs on random inputs"
    assert task.target_batches() is None


def test_a_wrong_name_gets_the_nearest(model, tmp_path):
    np.savez(tmp_path / "data.npz", X=np.ones((4, 3), np.float32), xx=np.ones(4))
    with pytest.raises(DataError, match=r"no array 'x' .did you mean 'xx'"):
        OnnxTask(model, tmp_path / "data.npz")


def test_a_wrong_shape_is_said(model, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((4, 5), np.float32))
    with pytest.raises(DataError, match=r"shape \(4, 5\) where the model takes \[None, 3\]"):
        OnnxTask(model, tmp_path / "data.npz")


def test_a_file_that_is_no_model_is_said(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a protobuf")
    with pytest.raises(TaskError, match="cannot be read as an ONNX model"):
        OnnxTask(tmp_path / "broken.onnx", None)


def test_agreement_is_top_one_for_logits_and_relative_for_the_rest():
    logits = np.array([[1.0, 2.0], [3.0, 1.0]])
    assert agreement(logits, logits[:, ::-1]).tolist() == [0.0, 0.0]
    assert agreement(logits, logits).tolist() == [1.0, 1.0]
    values = np.array([[[1.0]], [[2.0]]])
    assert agreement(values * 1.1, values) == pytest.approx([0.9, 0.9])

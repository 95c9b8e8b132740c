import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt.errors import DataError, TaskError
from edgeopt.tasks.onnx_file import OnnxTask, sample_agreement


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


def first_values(batches):
    return np.concatenate([batch["x"][:, 0] for batch in batches]).astype(int).tolist()


@pytest.mark.parametrize(("count", "calibrating"), [(64, 32), (400, 80), (5000, 384)])
def test_no_input_both_calibrates_and_selects(model, tmp_path, count, calibrating):
    x = np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, axis=1)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(count))
    task = OnnxTask(model, tmp_path / "data.npz")
    calibrates, selects = first_values(task.calibration_batches()), first_values(task.batches())
    assert (len(calibrates), sorted(calibrates + selects)) == (calibrating, list(range(count)))
    assert np.concatenate(task.target_batches()).tolist() == selects
    assert max(np.diff(calibrates)) <= np.ceil(count / calibrating)  # from the whole file
    assert task.calibrated_by == f"{calibrating} inputs calibrate int8, {count - calibrating} others select"


def test_too_few_inputs_do_both_and_the_report_says_so(model, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((63, 3), np.float32), labels=np.arange(63))
    task = OnnxTask(model, tmp_path / "data.npz")
    assert len(first_values(task.calibration_batches())) == len(first_values(task.batches())) == 63
    assert "labels" not in task.calibration_arrays
    assert task.calibrated_by.startswith("too few inputs to hold some back: the same 63 calibrate int8 and select")


def test_a_graph_with_a_fixed_batch_size_calibrates_on_whole_batches(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [24, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [24, 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((240, 3), np.float32))
    task = OnnxTask(tmp_path / "m.onnx", tmp_path / "data.npz")
    assert [len(batch["x"]) for batch in task.calibration_batches()] == [24, 24]
    assert [len(batch["x"]) for batch in task.batches()] == [24] * 8


def test_without_data_the_inputs_are_random_and_the_report_says_so(model):
    task = OnnxTask(model, None)
    assert task.scored_by == "agreement with the given file's outputs on random inputs"
    assert task.target_batches() is None


def test_a_wrong_input_name_suggests_the_nearest(model, tmp_path):
    np.savez(tmp_path / "data.npz", X=np.ones((4, 3), np.float32), xx=np.ones(4))
    with pytest.raises(DataError, match=r"no array 'x' .did you mean 'xx'"):
        OnnxTask(model, tmp_path / "data.npz")


def test_a_wrong_shape_is_refused(model, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((4, 5), np.float32))
    with pytest.raises(DataError, match=r"shape \(4, 5\), but the model takes \[n, 3\]"):
        OnnxTask(model, tmp_path / "data.npz")


def test_a_file_that_is_not_a_model_is_refused(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a protobuf")
    with pytest.raises(TaskError, match="cannot be read as an ONNX model"):
        OnnxTask(tmp_path / "broken.onnx", None)


def test_agreement_is_top_1_for_logits_and_a_relative_error_for_anything_else():
    logits = np.array([[1.0, 2.0], [3.0, 1.0]])
    assert sample_agreement(logits, logits[:, ::-1]).tolist() == [0.0, 0.0]
    assert sample_agreement(logits, logits).tolist() == [1.0, 1.0]
    values = np.array([[[1.0]], [[2.0]]])
    assert sample_agreement(values * 1.1, values) == pytest.approx([0.9, 0.9])

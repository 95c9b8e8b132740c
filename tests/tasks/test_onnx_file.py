import shlex
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data
from onnx_files import save, value

from edgeopt.errors import DataError, TaskError
from edgeopt.tasks.given.onnx_file import OnnxTask


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


@pytest.mark.parametrize(("count", "calibrating"), [(64, 32), (400, 80)])
def test_no_input_both_calibrates_and_selects(model, tmp_path, count, calibrating):
    x = np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, axis=1)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(count))
    task = OnnxTask(model, tmp_path / "data.npz")
    calibrates, selects = first_values(task.calibration_batches()), first_values(task.batches())
    assert (len(calibrates), sorted(calibrates + selects)) == (calibrating, list(range(count)))
    assert np.concatenate(task.target_batches()).tolist() == selects
    assert max(np.diff([-1, *calibrates, count])) <= 32  # from the whole file
    assert task.calibrated_by == f"{calibrating} inputs calibrate int8, {count - calibrating} others select"


def test_no_input_both_trains_and_selects(model, tmp_path):
    x = np.repeat(np.arange(5000, dtype=np.float32)[:, None], 3, axis=1)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(5000))
    task = OnnxTask(model, tmp_path / "data.npz")
    (group,) = task.split.training
    trains, selects = group.inputs["x"][:, 0].astype(int).tolist(), first_values(task.batches())
    assert (len(trains), sorted(trains + selects)) == (3000, list(range(5000)))
    assert set(first_values(task.calibration_batches())) <= set(trains)
    assert np.concatenate(task.target_batches()).tolist() == selects
    assert task.training is not None
    assert task.calibrated_by == "3000 inputs train, 384 of them calibrate int8, 2000 others select"


def test_too_few_inputs_to_train_on_are_a_reason_that_the_report_gives(model, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((400, 3), np.float32))
    task = OnnxTask(model, tmp_path / "data.npz")
    assert task.training is None
    assert task.untrained_reason == "400 inputs are too few to train on: give 427 or more"


def test_a_file_that_takes_float16_is_not_trained_and_the_reason_says_what_to_give(tmp_path):
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", half, ["n", 3])],
        [helper.make_tensor_value_info("y", half, ["n", 3])], [helper.make_tensor("w", half, [3], [1.0, 2.0, 3.0])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "h.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((900, 3), np.float16))
    task = OnnxTask(tmp_path / "h.onnx", tmp_path / "data.npz")
    assert task.training is None
    assert "its inputs or outputs are float16" in task.untrained_reason
    assert "keep_io_types=True" in task.untrained_reason


def test_too_few_inputs_do_both_and_the_report_says_so(model, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((63, 3), np.float32), labels=np.arange(63))
    task = OnnxTask(model, tmp_path / "data.npz")
    assert len(first_values(task.calibration_batches())) == len(first_values(task.batches())) == 63
    assert all(set(batch) == {"x"} for batch in task.calibration_batches())
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
    assert task.scored_by == "agreement with the given model's outputs on random inputs"
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


def a_graph_task(tmp_path, nodes, inputs, outputs, weights=(), **arrays):
    ends = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in one.items()]
        for one in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *ends, list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", **arrays)
    return OnnxTask(tmp_path / "m.onnx", tmp_path / "data.npz")


def test_an_output_whose_rows_the_values_decide_is_refused_or_left_out(tmp_path):
    number, count = (TensorProto.FLOAT, ["n", 3]), (TensorProto.INT64, ["rows"])
    unique = helper.make_node("Unique", ["x"], ["", "u"])
    relu = helper.make_node("Relu", ["x"], ["y"])
    x = np.ones((40, 3), np.float32)
    with pytest.raises(TaskError, match=r"rows of output 'u' \(Unique\) are not samples.* Export .* or write"):
        a_graph_task(tmp_path, [unique], {"x": number}, {"u": count}, x=x)
    task = a_graph_task(tmp_path, [relu, unique], {"x": number}, {"u": count, "y": number}, x=x)
    assert task.output_names == ("y",)
    assert task.notes == ("not judged, because their rows are not samples: 'u' (Unique)",)


def test_rows_that_are_not_samples_are_counted_in_batches_of_several_sizes(model, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((40, 3), np.float32))
    task = OnnxTask(model, tmp_path / "data.npz")
    batches = task.row_check_batches()
    assert [len(batch["x"]) for batch in batches] == [32, 16, 1]
    assert task.settle_output_axes(batches, [{"y": batch["x"]} for batch in batches]) == {}
    single, twice = [{"y": np.float32(1)}] * 3, [{"y": np.repeat(batch["x"], 2, axis=0)} for batch in batches]
    assert task.settle_output_axes(batches, single) == {"y": "a single number for 32 samples"}
    assert task.settle_output_axes(batches, twice) == {"y": "64 rows for 32 samples"}
    same_at_32 = [{"y": batches[0]["x"]}] * 3
    assert task.settle_output_axes(batches, same_at_32) == {"y": "32 rows for 16 samples"}


def test_single_numbers_and_shared_inputs_are_in_every_batch(tmp_path):
    nodes = [helper.make_node("Mul", ["x", "s"], ["m"]), helper.make_node("MatMul", ["m", "a"], ["y"])]
    number, shared = (TensorProto.FLOAT, ["n", 3]), (TensorProto.FLOAT, [3, 3])
    inputs = {"s": (TensorProto.FLOAT, []), "a": shared, "x": number}
    arrays = {"s": np.float32(2), "a": np.eye(3, dtype=np.float32), "x": np.ones((70, 3), np.float32)}
    task = a_graph_task(tmp_path, nodes, inputs, {"y": number}, **arrays)
    assert task.input_axes == (None, None, 0)
    for batch in (*task.batches(), *task.calibration_batches(), *task.row_check_batches()):
        assert (batch["s"].shape, batch["a"].shape) == ((), (3, 3))
    assert sum(len(batch["x"]) for batch in (*task.batches(), *task.calibration_batches())) == 70


def test_too_few_rows_for_a_fixed_batch_and_different_fixed_batches_are_refused(tmp_path):
    add = helper.make_node("Relu", ["x"], ["y"])
    fixed = (TensorProto.FLOAT, [24, 3])
    with pytest.raises(DataError, match=r"data\.npz: the model takes batches of exactly 24, but there are 10 rows"):
        a_graph_task(tmp_path, [add], {"x": fixed}, {"y": fixed}, x=np.ones((10, 3), np.float32))
    inputs = {"x": fixed, "z": (TensorProto.FLOAT, [12, 3])}
    with pytest.raises(DataError, match="several fixed batch sizes"):
        a_graph_task(tmp_path, [add], inputs, {"y": fixed}, **dict.fromkeys("xz", np.ones((48, 3), np.float32)))


@pytest.mark.parametrize("batch", [-1, 0])
def test_a_batch_written_as_minus_one_or_zero_is_any_batch(tmp_path, batch):
    number = (TensorProto.FLOAT, [batch, 3])
    x = np.ones((40, 3), np.float32)
    task = a_graph_task(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], {"x": number}, {"y": number}, x=x)
    assert [len(rows["x"]) for rows in task.batches()] == [32, 8]


def test_weights_in_another_file_are_part_of_the_models_hash(tmp_path):
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    number = (TensorProto.FLOAT, ["n", 3])
    matmul, x = helper.make_node("MatMul", ["x", "w"], ["y"]), np.ones((40, 3), np.float32)
    a_graph_task(tmp_path, [matmul], {"x": number}, {"y": number}, [weight], x=x)
    whole = onnx.load(tmp_path / "m.onnx")
    convert_model_to_external_data(whole, location="w.bin", size_threshold=0)
    onnx.save(whole, tmp_path / "m.onnx")
    packed = OnnxTask(tmp_path / "m.onnx", tmp_path / "data.npz")
    assert packed.notes == ("packed into one file with the weights of w.bin",)
    (tmp_path / "w.bin").write_bytes(bytes(36))
    other = OnnxTask(tmp_path / "m.onnx", tmp_path / "data.npz")
    assert other.sha256 != packed.sha256


def test_who_cannot_export_a_file_again_reads_how_its_batch_is_fixed_at_one(tmp_path):
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[1]), helper.make_node("Squeeze", ["m"], ["z"])]
    x = np.arange(120, dtype=np.float32).reshape(40, 3)
    task = a_graph_task(tmp_path, nodes, {"x": (TensorProto.FLOAT, ["n", 3])}, {"z": (TensorProto.FLOAT, ["n"])}, x=x)
    unlike = task.settle_output_axes(
        task.row_check_batches(), [{"z": np.ones(size)} for size in (32, 16)] + [{"z": x[0, 0]}]
    )
    assert unlike == {"z": "a single number for 1 sample"}
    with pytest.raises(TaskError, match=r"one shape, a batch that is fixed at 1 is enough: `python") as refused:
        task.keep_judged_outputs(unlike, task.advise_batch_of_one())
    command = shlex.split(str(refused.value).split("`")[1])
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    fixed = OnnxTask(tmp_path / "m-batch-1.onnx", tmp_path / "data.npz")
    batches = fixed.row_check_batches()
    assert fixed.settle_output_axes(batches, [{"z": batch["x"].mean()} for batch in batches]) == {}


def test_a_batch_without_a_name_or_of_fixed_size_has_no_such_command(tmp_path):
    for size in (None, 1):
        path = save(
            tmp_path / "m.onnx",
            [helper.make_node("Relu", ["x"], ["y"])],
            [value("x", [size, 3])],
            [value("y", [size, 3])],
        )
        np.savez(tmp_path / "data.npz", x=np.ones((40, 3), np.float32))
        assert not OnnxTask(path, tmp_path / "data.npz").advise_batch_of_one()


def test_rows_that_the_graph_calls_otherwise_than_the_batch_are_shared(tmp_path):
    nodes = [helper.make_node("Transpose", ["prompts"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    number = TensorProto.FLOAT
    inputs = {"prompts": (number, ["classes", 3]), "x": (number, ["batch", 3])}
    outputs, x = {"y": (number, ["batch", "classes"])}, np.ones((70, 3), np.float32)
    task = a_graph_task(tmp_path, nodes, inputs, outputs, x=x, prompts=x[:5])
    assert (task.input_axes, task.notes) == (
        (None, 0),
        ("all samples share 'prompts', whose rows are called 'classes'",),
    )
    assert {batch["prompts"].shape for batch in task.batches()} == {(5, 3)}
    inputs["prompts"] = (number, ["batch", 3])
    with pytest.raises(DataError, match="the same number of rows"):
        a_graph_task(tmp_path, nodes, inputs, outputs, x=x, prompts=x[:5])

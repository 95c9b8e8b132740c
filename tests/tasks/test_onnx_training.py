"""The PyTorch task of a given file: what it trains on, and what its targets are."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeopt.records.scoring import ScoreWish
from edgeopt.task import CheckedTask
from edgeopt.task.values import to_numpy
from edgeopt.tasks.given.onnx_file import OnnxTask
from edgeopt.tasks.given.onnx_trainable import TRAINING_SUFFIX
from edgeopt.tasks.given.onnx_training import OnnxTrainingTask, choose_training
from edgeopt.tasks.own_outputs import noisy_loss


def a_file_of_any_length(path):
    """Write a convolution over sounds of any length, with a gain that all samples share."""
    weights = np.random.default_rng(0).standard_normal((4, 1, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "gain"], ["g"]), helper.make_node("Conv", ["g", "w"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, "length"]),
            helper.make_tensor_value_info("gain", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, "out"])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, weights


def test_samples_of_different_lengths_train_in_batches_of_one_length_on_the_files_own_outputs(tmp_path):
    path, weights = a_file_of_any_length(tmp_path / "sounds.onnx")
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(450):
        x = np.full((1, 20 if number % 3 else 31), number, np.float32)
        np.savez(folder / f"{number:03}.npz", x=x, gain=np.float32(2))
    task = OnnxTask(path, folder)
    assert task.training is not None
    task.write_training(tmp_path / f"folder{TRAINING_SUFFIX}")
    training = OnnxTrainingTask(tmp_path / f"folder{TRAINING_SUFFIX}")
    seen = []
    for (x, gain), targets in training.train_batches(0):
        assert (gain.shape, float(gain)) == ((), 2)
        assert x.shape[2] in (20, 31)
        y = torch.conv1d(2 * x, torch.from_numpy(weights))
        (found,) = training.answer((x, gain))
        torch.testing.assert_close(found, y)
        torch.testing.assert_close(training.loss(y, targets), noisy_loss([y], [y]))
        seen += x[:, 0, 0].int().tolist()
    selects = [int(value) for (x, _), _ in training.eval_batches() for value in x[:, 0, 0]]
    assert (len(seen), len(set(seen))) == (270, 270)
    assert sorted(seen + selects) == list(range(450))
    again = [x[:, 0, 0].int().tolist() for (x, _), _ in training.train_batches(0)]
    assert [value for batch in again for value in batch] == seen
    assert training.dynamic_axes["x"] == {2: "length"}


def a_cell_with_its_last_state(path):
    """Write a recurrent cell that returns every step, samples first, and its last states, samples second."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((1, 12, 3)).astype(np.float32),
        "r": rng.standard_normal((1, 12, 4)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
            helper.make_node("GRU", ["steps", "w", "r"], ["all", "last"], hidden_size=4),
            helper.make_node("Squeeze", ["all", "one"], ["flat"]),
            helper.make_node("Transpose", ["flat"], ["y"], perm=[1, 0, 2]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 3])],
        [
            helper.make_tensor_value_info("last", TensorProto.FLOAT, [1, "batch", 4]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, 4]),
        ],
        [*(numpy_helper.from_array(values, name) for name, values in weights.items()),
         numpy_helper.from_array(np.array([1], np.int64), "one")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_output_whose_samples_are_not_in_dimension_0_is_not_judged_in_training(tmp_path):
    path = a_cell_with_its_last_state(tmp_path / "cell.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(1).standard_normal((450, 5, 3)).astype(np.float32))
    task = OnnxTask(path, tmp_path / "inputs.npz")
    task.write_training(tmp_path / f"folder{TRAINING_SUFFIX}")
    training = CheckedTask(OnnxTrainingTask(tmp_path / f"folder{TRAINING_SUFFIX}"), "tests")
    (part,) = training.score_kind.parts
    assert (part.output, part.index) == ("y", 1)
    pairs = [(training.interface.run(inputs), targets) for inputs, targets in training.eval_batches()]
    found = [([to_numpy(value) for value in outputs], to_numpy(targets)) for outputs, targets in pairs]
    assert training.score(found) == pytest.approx(1.0)


@pytest.mark.parametrize(("wish", "metric"), [(ScoreWish(), "similarity"), (ScoreWish(score="cosine"), "cosine")])
def test_the_best_epoch_is_chosen_by_the_score_that_the_user_asked_for(tmp_path, wish, metric):
    path = a_cell_with_its_last_state(tmp_path / "cell.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(1).standard_normal((450, 5, 3)).astype(np.float32))
    OnnxTask(path, tmp_path / "inputs.npz", wish).write_training(tmp_path / f"folder{TRAINING_SUFFIX}")
    training = CheckedTask(OnnxTrainingTask(tmp_path / f"folder{TRAINING_SUFFIX}"), "tests")
    assert [part.metric for part in training.score_kind.parts] == [metric]


def test_a_table_that_the_last_layer_uses_transposed_is_one_parameter(tmp_path):
    table = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("MatMul", ["rows", "last"], ["y"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6, 50])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.ascontiguousarray(table.T), "last")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "tied.onnx")
    ids = np.random.default_rng(1).integers(0, 50, (450, 6))
    np.savez(tmp_path / "inputs.npz", ids=ids)
    OnnxTask(tmp_path / "tied.onnx", tmp_path / "inputs.npz").write_training(tmp_path / f"folder{TRAINING_SUFFIX}")
    module = OnnxTrainingTask(tmp_path / f"folder{TRAINING_SUFFIX}").build_model()
    assert sum(parameter.numel() for parameter in module.parameters()) == table.size
    torch.testing.assert_close(module(torch.from_numpy(ids[:2])), torch.from_numpy(table[ids[:2]] @ table.T))


def test_the_files_own_outputs_that_select_are_computed_once(tmp_path, monkeypatch):
    path = a_cell_with_its_last_state(tmp_path / "cell.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(1).standard_normal((450, 5, 3)).astype(np.float32))
    OnnxTask(path, tmp_path / "inputs.npz").write_training(tmp_path / f"folder{TRAINING_SUFFIX}")
    training = OnnxTrainingTask(tmp_path / f"folder{TRAINING_SUFFIX}")
    first = [tensor for _, targets in training.eval_batches() for tensor in targets]

    def fail(inputs):
        raise AssertionError("answered again")

    monkeypatch.setattr(training, "answer", fail)
    again = [tensor for _, targets in training.eval_batches() for tensor in targets]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_convolutions_train_at_a_higher_rate_than_recurrent_layers(tmp_path):
    convolution, _ = a_file_of_any_length(tmp_path / "sounds.onnx")
    recurrent = a_cell_with_its_last_state(tmp_path / "cell.onnx")
    rates = [choose_training(onnx.load(path).graph).learning_rate for path in (convolution, recurrent)]
    assert rates[0] > 2 * rates[1]


def test_restored_norms_have_the_same_statistics_in_every_process_and_leave_no_other_file(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float64) for name, shape in
              {"w": (4, 1, 3), "b": (4,), "v": (2, 4, 1)}.items()}  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["c"]), helper.make_node("Relu", ["c"], ["r"]),
         helper.make_node("Conv", ["r", "v"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["batch", 1, "length"])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["batch", 2, "out"])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    path = tmp_path / "doubles.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    data = tmp_path / "data"
    data.mkdir()
    for number in range(450):
        np.savez(data / f"{number:03}.npz", x=rng.standard_normal((1, 9 if number % 3 else 14)))
    folder = tmp_path / f"folder{TRAINING_SUFFIX}"
    OnnxTask(path, data).write_training(folder)
    before = {file.name for file in folder.iterdir()}
    first, second = (OnnxTrainingTask(folder).build_model() for _ in range(2))
    assert {file.name for file in folder.iterdir()} - before == {"statistics.safetensors"}
    assert [name for name, _ in first.named_parameters() if "restored_norm" in name]
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    x = torch.randn(3, 1, 9, dtype=torch.float64)
    hidden = torch.conv1d(x, torch.from_numpy(arrays["w"]), torch.from_numpy(arrays["b"])).relu()
    torch.testing.assert_close(first(x), torch.conv1d(hidden, torch.from_numpy(arrays["v"])))

"""The PyTorch task of a given file: what it trains on, and what its targets are."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeopt.tasks.given.onnx_file import OnnxTask
from edgeopt.tasks.given.onnx_trainable import TRAINING_SUFFIX
from edgeopt.tasks.given.onnx_training import OnnxTrainingTask
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

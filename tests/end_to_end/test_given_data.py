"""A bare ``.onnx`` built from a folder of samples of different lengths, and one with a state over sequences."""

import numpy as np
import onnx
import pytest
from building import choice_of, edgeopt, write_target
from onnx import helper, numpy_helper
from onnx_files import save, value


def weight(name, *shape):
    values = np.random.default_rng(len(name) + sum(shape)).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return numpy_helper.from_array(values.astype(np.float32), name)


@pytest.fixture
def folder(tmp_path):
    write_target(tmp_path / "tiny.toml")
    (tmp_path / "data").mkdir()
    return tmp_path


def test_samples_of_different_lengths_are_scored_as_they_are_and_timed_at_the_largest(folder):
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "classes"], ["logits"]),
    ]
    weights = [weight("kernel", 32, 8, 5), weight("classes", 32, 4)]
    save(folder / "m.onnx", nodes, [value("x", ["n", 8, "t"])], [value("logits", ["n", 4])], weights)
    rng = np.random.default_rng(0)
    for number in range(80):
        np.save(folder / "data" / f"{number:02}.npy", rng.standard_normal((8, 20 + number % 4)).astype(np.float32))
    done = edgeopt(folder, "build", "m.onnx", "--data", "data", "--target", "tiny.toml", "--quick")
    assert done.returncode == 0, done.stderr
    choice = choice_of(folder)
    assert "Latency and memory are judged at t 23." in choice["notes"]
    assert choice["baseline"]["macs"] == 19 * 32 * 8 * 5 + 32 * 4
    done = edgeopt(
        folder, "build", "m.onnx", "--data", "data", "--target", "tiny.toml", "--quick", "--shape", "x=1x9x50"
    )
    assert done.returncode == 2
    assert "gives 'x' size 9 in dimension 1, but the network has 8 there." in " ".join(done.stderr.split())


def test_a_state_is_fed_back_over_sequences_also_when_the_bundle_is_checked(folder):
    nodes = [
        helper.make_node("MatMul", ["x", "in"], ["i"]),
        helper.make_node("MatMul", ["h", "back"], ["b"]),
        helper.make_node("Add", ["i", "b"], ["a"]),
        helper.make_node("Tanh", ["a"], ["next"]),
        helper.make_node("Squeeze", ["next", "axis"], ["s"]),
        helper.make_node("MatMul", ["s", "out"], ["y"]),
    ]
    weights = [weight("in", 8, 64), weight("back", 64, 64), weight("out", 64, 2)]
    axis = numpy_helper.from_array(np.array([0]), "axis")
    inputs, outputs = (
        [value("x", ["n", 8]), value("h", [1, "n", 64])],
        [value("y", ["n", 2]), value("next", [1, "n", 64])],
    )
    save(folder / "m.onnx", nodes, inputs, outputs, [*weights, axis])
    rng = np.random.default_rng(0)
    for number in range(10):
        np.save(folder / "data" / f"{number}.npy", rng.standard_normal((5 + number % 2, 8)).astype(np.float32))
    data = ("--data", "data", "--state", "h=next")
    done = edgeopt(folder, "build", "m.onnx", *data, "--target", "tiny.toml", "--quick")
    assert done.returncode == 0, done.stderr
    baseline = choice_of(folder)["baseline"]
    assert any("each file's own are fed back over a sequence: 'h' from 'next'" in note for note in baseline["notes"])
    assert baseline["score"] == pytest.approx(1)
    checked = edgeopt(folder, "check", "edgeopt-out", "--score", "m.onnx", *data, "--target", "tiny.toml")
    assert "score" in checked.stdout, checked.stderr
    assert checked.returncode in (0, 3), checked.stderr


def test_a_check_knows_the_file_that_was_built_though_its_operator_set_was_lowered(folder):
    for name, opset in (("m.onnx", 21), ("other.onnx", 20)):
        save(
            folder / name, [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", ["n", 8])],
            [value("y", ["n", 64])], [weight("w", 8, 64)],
        )  # fmt: skip
        model = onnx.load(folder / name)
        model.opset_import[0].version = opset
        onnx.save(model, folder / name)
    np.savez(folder / "in.npz", x=np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32))
    done = edgeopt(folder, "build", "m.onnx", "--data", "in.npz", "--target", "tiny.toml", "--quick")
    assert done.returncode == 0, done.stderr
    assert choice_of(folder)["baseline"]["opset"] == 20
    check = ("check", "edgeopt-out", "--data", "in.npz", "--target", "tiny.toml", "--score")
    done = edgeopt(folder, *check, "m.onnx")
    assert done.returncode == 0, done.stderr
    done = edgeopt(folder, *check, "other.onnx")
    assert done.returncode == 2
    assert "other.onnx is a different file" in " ".join(done.stderr.split())

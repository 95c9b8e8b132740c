"""A bare ``.onnx`` with enough inputs is pruned and trained on its own outputs; what cannot be is measured, and why."""

import json

import numpy as np
import onnx
import pytest
import torch
from building import choice_of, edgeopt, write_target
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from edgeopt.export.to_onnx import export

ROWS = 900


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(48, 48, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(48, 4)

    def forward(self, x):
        return self.head(self.features(x))


def images(count, seed=0):
    """Gratings of four directions, with noise; return them and their directions."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"))
    angles, phases = labels * np.pi / 4, random.uniform(0, 6, count)
    waves = np.cos(angles)[:, None, None] * grid[0] + np.sin(angles)[:, None, None] * grid[1]
    x = np.sin(waves + phases[:, None, None]) + random.normal(0, 0.3, (count, 16, 16))
    return x[:, None].astype(np.float32), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned-given")
    torch.manual_seed(0)
    net, (x, labels) = SmallNet(), images(512, seed=1)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(labels)).backward()
        optimizer.step()
    names = {"input_names": ["serving/images:0"], "output_names": ["logits"]}
    export(net.eval(), (torch.from_numpy(x[:2]),), folder / "net.onnx", **names, max_opset=18, max_ir=10)
    half = convert_float_to_float16(onnx.load(folder / "net.onnx"), keep_io_types=True)
    onnx.save(half, folder / "half.onnx")
    np.savez(folder / "data.npz", **{"serving/images:0": images(ROWS)[0]})
    write_target(folder / "tiny.toml")
    return folder


def test_it_is_pruned_without_labels_under_its_own_names(folder):
    done = edgeopt(folder, "build", "net.onnx", "--data", "data.npz", "--target", "tiny.toml", "--quick")
    assert done.returncode == 0, done.stderr
    choice = choice_of(folder)
    notes = " | ".join(choice["baseline"]["notes"])
    assert "540 inputs train, 384 of them calibrate int8, 360 others select" in notes
    assert "not pruned" not in notes
    steps = [step["step"] for trial in choice["trials"] for step in trial["recipe"]["torch_steps"]]
    assert {"prune", "distill"} <= set(steps)
    pruned = [trial for trial in choice["trials"] if trial["recipe"]["torch_steps"]]
    assert any(trial["status"] == "measured" for trial in pruned)
    shipped = onnx.load(folder / "edgeopt-out" / "model.onnx")
    assert [value.name for value in shipped.graph.input] == ["serving/images:0"]
    assert [value.name for value in shipped.graph.output] == ["logits"]
    assert (folder / "edgeopt-out" / "model.onnx").stat().st_size < (folder / "net.onnx").stat().st_size / 5


def test_a_file_with_weights_in_float16_is_widened_and_pruned(folder):
    done = edgeopt(
        folder, "build", "half.onnx", "--data", "data.npz", "--target", "tiny.toml", "--quick", "--out", "half"
    )
    assert done.returncode == 0, done.stderr
    choice = json.loads((folder / "half" / "choice.json").read_text(encoding="utf-8"))
    assert choice["baseline"]["weight_types"] == ["float16"]
    assert "not pruned" not in " | ".join(choice["baseline"]["notes"])
    trained = [trial for trial in choice["trials"] if trial["recipe"]["torch_steps"] and trial["status"] == "measured"]
    assert trained
    assert {name for trial in trained for name in trial["weight_types"]} <= {
        "float32",
        "float16",
        "int8",
        "int4",
        "int3",
    }
    assert min(trial["parameters"] for trial in trained) < choice["baseline"]["parameters"]


@pytest.mark.parametrize("name", ["net.onnx", "half.onnx"])
def test_inspect_shows_which_of_its_channels_could_go(folder, name):
    done = edgeopt(folder, "inspect", name, "--channels", "--inputs", "data.npz", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["free_channels"], found["channels"]) == (120, 124)
    assert {group["name"]: group["channels"] for group in found["groups"]}["features.3"] == 48


def test_a_file_with_an_operator_that_torch_has_not_is_measured_and_the_report_says_why(folder):
    model = onnx.load(folder / "net.onnx")
    model.graph.node.append(
        onnx.helper.make_node("ExpandDims", ["logits", "axis"], ["odd"], name="last", domain="com.microsoft")
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2, np.int32), "axis"))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("odd", onnx.TensorProto.FLOAT, ["batch", 4, 1]))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, folder / "odd.onnx")
    done = edgeopt(folder, "build", "odd.onnx", "--data", "data.npz", "--target", "tiny.toml", "--quick", "--out", "b")
    assert done.returncode == 0, done.stderr
    notes = " | ".join(choice_of(folder, "b")["baseline"]["notes"])
    assert "not pruned: operator com.microsoft.ExpandDims of node 'last' has no counterpart in torch" in notes


def test_a_file_whose_samples_are_in_another_dimension_of_its_output_is_measured_and_the_report_says_why(folder):
    """As of readers of text, whose output is (steps, samples, classes)."""
    model = onnx.load(folder / "net.onnx")
    model.graph.node.append(onnx.helper.make_node("Unsqueeze", ["logits", "first"], ["steps"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "first"))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("steps", onnx.TensorProto.FLOAT, [1, "batch", 4]))
    onnx.save(model, folder / "steps.onnx")
    done = edgeopt(
        folder, "build", "steps.onnx", "--data", "data.npz", "--target", "tiny.toml", "--quick", "--out", "c"
    )
    assert done.returncode == 0, done.stderr
    notes = " | ".join(choice_of(folder, "c")["baseline"]["notes"])
    assert "not pruned: steps: no output that is judged has its samples in dimension 0" in notes

"""A build, `inspect`, `bench` and `check` of models that do not fit into one file; the limit is lowered to a few kB."""

import hashlib
import json

import numpy as np
import pytest
from building import choice_of, edgeopt, write_target
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

LOWERED = {"_EDGEOPT_MAX_FILE_BYTES": "100000"}
UNLIMITED = {"max_latency_ms": '"none"', "max_peak_memory_bytes": '"none"', "max_size_bytes": '"none"'}
ROWS, WIDTH, CLASSES = 400, 64, 4

TASK = """
import edgeopt
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(400, 64)
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 4))

    def forward(self, x):
        return self.layers(self.table(x).mean(1))


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 400, (128, 6), generator=generator)
    with torch.no_grad():
        return [(x, Net().eval()(x).argmax(1))]


def task():
    return edgeopt.classification(Net, batches, batches(1000), name="large", training=edgeopt.Training(epochs=1))
"""


def write_given(folder):
    """Write a network in a new operator set, whose weights are in two files, one in a folder, and its inputs."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((ROWS, WIDTH)).astype(np.float32),
        "w": rng.standard_normal((WIDTH, 128)).astype(np.float32) / 8,
        "v": rng.standard_normal((128, CLASSES)).astype(np.float32) / 11,
    }
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 6]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES]),
    ]
    stored = {name: numpy_helper.from_array(values, name) for name, values in weights.items()}
    (folder / "parts").mkdir()
    (folder / "parts" / "table.bin").write_bytes(bytes(16) + stored["table"].raw_data)
    (folder / "rest.bin").write_bytes(stored["v"].raw_data + stored["w"].raw_data)
    places = {"table": ("parts/table.bin", 16), "v": ("rest.bin", 0), "w": ("rest.bin", weights["v"].nbytes)}
    for name, (location, offset) in places.items():
        set_external_data(stored[name], location=location, offset=offset, length=weights[name].nbytes)
        stored[name].ClearField("raw_data")
    axes = numpy_helper.from_array(np.array([1]), "axes")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [*stored.values(), axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "given.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "in.npz", x=rng.integers(0, ROWS, (60, 6)))  # too few to train on
    return sum(values.nbytes for values in weights.values())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in LOWERED.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_a_given_model_is_inspected_benched_and_built_to_one_int8_file(folder):
    weight_bytes = write_given(folder)
    write_target(folder / "tiny.toml", **UNLIMITED)
    done = edgeopt(folder, "inspect", "given.onnx", "--target", "tiny.toml", "--inputs", "in.npz", "--json")
    found = json.loads(done.stdout or "null")
    assert done.returncode == 0, done.stderr
    assert found["parameters"] == weight_bytes // 4
    assert found["size_bytes"] > weight_bytes
    assert found["run_ms"] > 0
    assert found["notes"][0] == "run in two files, with the weights of parts/table.bin and 1 more"

    done = edgeopt(folder, "bench", "given.onnx", "--target", "tiny.toml", "--inputs", "in.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size_bytes"] == found["size_bytes"]

    done = edgeopt(folder, "build", "given.onnx", "--data", "in.npz", "--target", "tiny.toml", "--quick")
    assert done.returncode == 0, done.stderr
    choice = choice_of(folder)
    assert choice["baseline"]["size_bytes"] > weight_bytes
    assert choice["baseline"]["score"] == 1.0
    assert choice["winner"]["size_bytes"] < weight_bytes / 3
    assert [path.name for path in (folder / "edgeopt-out").glob("*.data")] == []
    assert any("Int8 was tried for the weights only" in note for note in choice["notes"])
    assert "operator set 21 lowered to 20" in str(choice)
    assert {trial["status"] for trial in choice["trials"]} == {"measured"}
    forms = {step["step"] for trial in choice["trials"] for step in trial["recipe"]["graph_steps"]}
    assert {"float16", "store-weights", "compact"} <= forms | {"float16"}
    assert not forms & {"quantize", "quantize-dynamic"}


def test_a_task_ships_two_files_if_one_cannot_hold_the_winner(folder):
    (folder / "net.py").write_text(TASK)
    write_target(folder / "tiny.toml", precisions='["fp32"]', **UNLIMITED)
    done = edgeopt(folder, "build", "net.py:task", "--target", "tiny.toml", "--quick", "--time-limit", "0.001", "--yes")
    assert done.returncode == 0, done.stderr
    out = folder / "edgeopt-out"
    (weights,) = out.glob("*.data")
    choice, manifest = choice_of(folder), json.loads((out / "manifest.json").read_text())
    assert weights.stem == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert choice["winner"]["size_bytes"] == (out / "model.onnx").stat().st_size + weights.stat().st_size
    assert {"model.onnx", weights.name} <= manifest["files"].keys()

    done = edgeopt(folder, "check", "edgeopt-out", "--target", "tiny.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    weights.write_bytes(bytes(8) + weights.read_bytes()[8:])
    done = edgeopt(folder, "check", "edgeopt-out", "--target", "tiny.toml")
    assert done.returncode == 2
    assert weights.name in done.stdout + done.stderr

"""A bare ``.onnx`` as exporters leave it: weights in another file, a new header, any names, float16, detections."""

import json

import numpy as np
import onnx
import pytest
from building import choice_of, edgeopt, write_target
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

NMS_INPUTS = ["boxes", "scores", "most", "iou", "confidence"]


def a_value(name, *shape, kind=TensorProto.FLOAT16):
    return helper.make_tensor_value_info(name, kind, list(shape))


def write_model(folder):
    """Write a float16 network over two inputs, with logits and selected boxes as its outputs; return its weights."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((32, 128)).astype(np.float16) / np.float16(6),
        "v": rng.standard_normal((128, 10)).astype(np.float16) / np.float16(11),
        "u": rng.standard_normal((128, 16)).astype(np.float16),
        "four": np.array([0, 4, 4]), "by_class": np.array([0, 1, 4]), "first": np.array([0]), "one": np.array([1]),
        "two": np.array([2]), "most": np.array([2]), "iou": np.float32([0.9]), "confidence": np.float32([0.0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Mul", ["serving/x:0", "labels"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["a/logits:0"]),
        helper.make_node("MatMul", ["r", "u"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "four"], ["boxes"]),
        helper.make_node("Slice", ["boxes", "first", "one", "two"], ["first_of_each"]),
        helper.make_node("Reshape", ["first_of_each", "by_class"], ["scores"]),
        helper.make_node("NonMaxSuppression", NMS_INPUTS, ["0"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [a_value("serving/x:0", "n", 32), a_value("labels", "n", 1)],
        [a_value("a/logits:0", "n", 10), a_value("0", "selected", 3, kind=TensorProto.INT64)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, folder / "given.onnx")
    return weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    weights = write_model(folder)
    x = np.random.default_rng(1).standard_normal((160, 32))
    logits = np.maximum(x @ weights["w"], 0) @ weights["v"]
    arrays = {"serving/x:0": x, "labels": np.ones((160, 1), np.float16)}
    np.savez(folder / "in.npz", **arrays, targets=logits.argmax(1))
    write_target(folder / "tiny.toml")
    return folder


def test_it_is_packed_cast_judged_by_its_logits_and_described_as_it_is(folder):
    done = edgeopt(folder, "build", "given.onnx", "--data", "in.npz", "--target", "tiny.toml", "--quick")
    assert done.returncode == 0, done.stderr
    choice = choice_of(folder)
    notes = " | ".join(choice["baseline"]["notes"])
    assert "packed into one file with the weights of weights.bin" in notes
    assert "'serving/x:0' cast from float64 to float16" in notes
    assert "not judged, because their rows are not samples: '0' (NonMaxSuppression)" in notes
    assert choice["baseline"]["score"] > 0.95
    assert choice["baseline"]["weight_types"] == ["float16"]
    assert choice["baseline"]["ir_version"] <= 9
    manifest = json.loads((folder / "edgeopt-out" / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["golden"]] == ["serving/x:0", "labels", "a/logits:0"]

    score = ["--score", "given.onnx", "--data", "in.npz"]
    done = edgeopt(folder, "check", "edgeopt-out", "--target", "tiny.toml", *score, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["score"]["score"]["value"] == choice["winner"]["score"]

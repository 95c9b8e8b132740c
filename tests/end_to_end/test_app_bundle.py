"""The bundle of a classifier of pictures: an app's self-test passes with it, and finds wrong ranges of int8."""

import json
import shutil
import sqlite3

import numpy as np
import onnx
import onnxruntime
import picture_task
import pytest
from building import TESTS, choice_of, edgeopt, write_target
from PIL import Image
from python_sample import run_sample

SPEC = f"{TESTS / 'picture_task.py'}:make_task"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    picture_task.write_pictures(folder / "pictures")
    write_target(folder / "tiny.toml", precisions='["int8", "fp32"]')
    arguments = ("--target", "tiny.toml", "--quick", "--no-train", "--yes", "--ort-format")
    done = edgeopt(folder, "build", SPEC, *arguments, PICTURES=str(folder / "pictures"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout
    return folder


def manifest_of(bundle):
    return json.loads((bundle / "manifest.json").read_text())


def test_the_golden_inputs_are_a_picture_of_each_class(folder):
    bundle = folder / "edgeopt-out"
    manifest = manifest_of(bundle)
    pictures = next(entry["raw"] for entry in manifest["golden"] if entry["role"] == "input")
    assert len(pictures) == 8
    assert {answer["label"] for answer in manifest["answers"]} == set(picture_task.CLASSES)
    with Image.open(bundle / pictures[0]) as image:
        assert image.size == picture_task.SIZE[::-1]
    assert manifest["licence"] == "made up"
    assert manifest["inputs"][0]["preprocessing"]["mean"] == list(picture_task.MEAN)
    low, high = manifest["inputs"][0]["value_range"]
    assert -0.48 / 0.22 - 0.2 < low < 0 < high < 0.59 / 0.22 + 0.2


def test_the_file_itself_says_how_inputs_are_made_and_what_the_classes_are(folder):
    bundle = folder / "edgeopt-out"
    metadata = {entry.key: entry.value for entry in onnx.load(bundle / "model.onnx").metadata_props}
    manifest = manifest_of(bundle)
    assert json.loads(metadata["edgeopt.labels"]) == manifest["labels"] == list(picture_task.CLASSES)
    (tensor,) = manifest["inputs"]
    assert json.loads(metadata["edgeopt.inputs"])[tensor["name"]]["mean"] == tensor["preprocessing"]["mean"]
    assert set(metadata) == {"edgeopt.inputs", "edgeopt.labels"}
    assert choice_of(folder)["winner"]["size_bytes"] == (bundle / "model.onnx").stat().st_size


def test_the_baseline_is_the_network_as_it_was_exported(folder):
    baseline = choice_of(folder)["trials"][0]
    with sqlite3.connect(folder / ".edgeopt" / "ledger.sqlite") as ledger:
        rows = ledger.execute("select json from parts where kind = 'exported-file'").fetchall()
    assert baseline["onnx"] in {f"artifacts/{json.loads(row[0])['sha256']}.onnx" for row in rows}


def test_the_manifest_says_what_short_names_stand_for(folder):
    graph = onnx.load(folder / "edgeopt-out" / "model.onnx").graph
    names = manifest_of(folder / "edgeopt-out")["names"]
    inner = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    assert inner <= names.keys()
    assert {"0.weight", "3.weight_quantized"} <= set(names.values())


def test_the_model_in_the_runtimes_own_format_gives_the_golden_outputs_and_is_in_the_report(folder):
    bundle = folder / "edgeopt-out"
    manifest = manifest_of(bundle)
    ort = manifest["ort"]
    assert ort == choice_of(folder)["ort"]
    assert (ort["target_platform"], ort["level"]) == ("any", "all")  # the target is a stand-in
    assert ort["size_bytes"] == manifest["files"]["model.ort"]["size_bytes"] == (bundle / "model.ort").stat().st_size
    assert "QLinearConv" in (bundle / ort["operators_file"]).read_text()
    assert "For a reduced ONNX Runtime: model.ort (" in (bundle / "report.html").read_text()
    assert "For a reduced ONNX Runtime: model.ort (" in (bundle / "README.md").read_text()
    arrays = {
        entry["role"]: np.fromfile(bundle / entry["file"], entry["dtype"]).reshape(entry["shape"])
        for entry in manifest["golden"]
        if entry["role"] != "resized"
    }
    (output,) = onnxruntime.InferenceSession(bundle / "model.ort").run(
        None, {manifest["inputs"][0]["name"]: arrays["input"]}
    )
    tolerance = next(entry["tolerance"] for entry in manifest["golden"] if entry["role"] == "output")
    assert np.abs(output - arrays["output"]).max() <= tolerance


def test_the_tolerance_is_measured_and_far_below_a_tenth_of_the_output(folder):
    manifest = manifest_of(folder / "edgeopt-out")
    entry = next(entry for entry in manifest["golden"] if entry["role"] == "output")
    steps = choice_of(folder)["winner"]["recipe"]["graph_steps"]
    assert any(step["step"] == "quantize" for step in steps)
    assert 0.0 < entry["tolerance"] < 0.5  # the largest logit is about 5


def test_the_sample_answers_for_a_picture_of_the_folder(folder):
    picture = folder / "pictures" / "green sea" / "3.png"
    done = run_sample(folder / "edgeopt-out", picture)
    assert done.stdout.splitlines()[:2][0] == "self-test: passed", done.stderr
    assert done.stdout.splitlines()[1].startswith("green sea: ")


def test_int8_ranges_of_another_model_fail_the_self_test(folder, tmp_path):
    bundle = shutil.copytree(folder / "edgeopt-out", tmp_path / "out")
    model = onnx.load(bundle / "model.onnx")
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    scales = [tensor for tensor in floats if not tensor.dims]
    assert scales
    for tensor in scales:
        scale = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array((scale * 1.15).astype(scale.dtype), tensor.name))
    onnx.save(model, bundle / "model.onnx")
    done = run_sample(bundle)
    assert done.returncode == 1
    assert "self-test: output 'output' is off by" in done.stderr

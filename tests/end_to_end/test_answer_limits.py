"""Limits on single answers and another preference, from the command line to the report and the check of the bundle."""

import json

import numpy as np
import pytest
from building import choice_of, edgeopt, write_target
from onnx import helper, numpy_helper
from onnx_files import save, value

SAMPLES = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a network of three classes, one of which int8 answers less well, and labelled inputs."""
    folder = tmp_path_factory.mktemp("answers")
    write_target(folder / "tiny.toml")
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((64, 96), (96, 3)))
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "second"], ["logits"]),
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in (("first", first), ("second", second))]
    save(folder / "m.onnx", nodes, [value("x", ["n", 64])], [value("logits", ["n", 3])], weights)
    inputs = rng.standard_normal((SAMPLES, 64)).astype(np.float32)
    labels = (np.maximum(inputs @ first, 0) @ second).argmax(1)
    np.savez(folder / "data.npz", x=inputs, labels=labels)
    np.savez(folder / "values.npz", x=inputs, labels=(inputs @ first[:, :3]).astype(np.float32))
    return folder


def build(folder, *options, data="data.npz"):
    return edgeopt(folder, "build", "m.onnx", "--data", data, "--target", "tiny.toml", "--quick", *options)


def test_limits_on_answers_are_judged_shown_and_checked(folder):
    done = build(folder, "--max-flips", "0.2", "--max-class-drop", "0.3", "--prefer", "memory", "--max-drop", "0.1")
    assert done.returncode == 0, done.stderr
    choice = choice_of(folder)
    assert (choice["budget"]["max_flip_ratio"], choice["budget"]["prefer"]) == (0.2, "memory")
    winner = next(trial for trial in choice["trials"] if trial["number"] == choice["winner"]["number"])
    answers = winner["answers"]
    assert 0 <= answers["flip_ratio"] <= answers["flip_ratio_ci95"][1] <= 0.2
    assert answers["worst_class"]["number"] in (0, 1, 2)
    shown = " ".join(done.stdout.split())
    assert "Changed answers" in shown
    assert "loses most in class" in shown
    manifest = json.loads((folder / "edgeopt-out" / "manifest.json").read_text())
    assert {"class", "flips"} <= {row["limit"] for row in manifest["proof"]}
    checked = edgeopt(
        folder, "check", "edgeopt-out", "--score", "m.onnx", "--data", "data.npz", "--target", "tiny.toml"
    )
    assert checked.returncode in (0, 3), checked.stderr
    assert "is not compared here" in " ".join(checked.stdout.split())


def test_a_limit_on_changed_answers_that_nothing_smaller_keeps_binds(folder):
    done = build(folder, "--max-flips", "0", "--max-drop", "none")
    assert done.returncode == 0, done.stderr
    choice = choice_of(folder)
    assert choice["winner"]["number"] == 0  # few samples never prove that no answer changes
    assert choice["binding"] == ["flips"]


def test_limits_on_answers_of_an_output_that_gives_none_are_refused(folder):
    done = build(folder, "--max-flips", "0.1", "--max-drop", "none", data="values.npz")
    assert done.returncode == 2
    assert "--max-flips none" in " ".join(done.stderr.split())
    for wrong in ("5", "-0.1"):
        done = build(folder, "--max-flips", wrong)
        assert (done.returncode, "share of answers" in done.stderr) == (2, True), done.stderr

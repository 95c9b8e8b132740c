"""The Node sample of a bundle with the real onnxruntime-node: its self-test, and its answer for a file."""

import json

import numpy as np
import pytest
from app_bundles import COLORS, draw_pixels, write_app_bundle
from PIL import Image
from python_sample import assert_same_mistakes
from stream_bundles import REFUSED, change_manifest, write_stream_bundle


def label_of(bundle, sample):
    answers = json.loads((bundle / "manifest.json").read_text())["answers"]
    return next(answer["label"] for answer in answers if answer["sample"] == sample)


def test_it_passes_its_self_test_and_answers_for_an_image_of_another_size(run_node, tmp_path):
    bundle = write_app_bundle(tmp_path, "images")
    large = np.kron(draw_pixels(2), np.ones((3, 3, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.png")
    done = run_node(bundle, tmp_path / "large.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "self-test: passed"
    assert done.stdout.splitlines()[1].startswith(f"{label_of(bundle, 2)}: ")


@pytest.mark.parametrize("kind", ["sounds", "class maps"])
def test_it_runs_models_of_sounds_and_of_class_maps(run_node, tmp_path, kind):
    bundle = write_app_bundle(tmp_path, kind)
    file = "input-0-1.wav" if kind == "sounds" else "input-0-1.png"
    done = run_node(bundle, bundle / "golden" / file)
    assert done.stdout.splitlines()[0] == "self-test: passed", done.stderr
    expected = f"{label_of(bundle, 1)}: " if kind == "sounds" else "y: class map of 20x24"
    assert done.stdout.splitlines()[1].startswith(expected)


def test_a_mistake_in_preprocessing_fails(run_node, tmp_path):
    bundle = write_app_bundle(tmp_path, "images")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["inputs"][0]["preprocessing"]["color"] = "rgb"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = run_node(bundle)
    assert done.returncode == 1
    assert "self-test: preprocessing of 'x' is off by" in done.stdout


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["boxes"].update(stride=8),
        lambda manifest: manifest["boxes"].update(min_score=1e-5),
        lambda manifest: manifest.update(labels=[*COLORS[1:], COLORS[0]]),
    ],
    ids=["another stride", "less certain boxes are shown", "labels shifted by one"],
)
def test_mistakes_with_boxes_fail_in_the_words_of_the_python_sample(run_node, tmp_path, change):
    bundle = write_app_bundle(tmp_path, "boxes")
    change_manifest(bundle, change)
    assert_same_mistakes(run_node(bundle), bundle)


def test_a_stream_that_it_cannot_run_is_named_in_a_sentence(run_node, tmp_path):
    bundle = write_stream_bundle(tmp_path)
    whole = (bundle / "manifest.json").read_text()
    for change, sentence in REFUSED.items():
        change_manifest(bundle, change)
        done = run_node(bundle, bundle / "golden" / "input-1-0.wav")
        assert (done.returncode, done.stdout, done.stderr) == (1, "self-test: passed\n", f"{sentence}\n")
        (bundle / "manifest.json").write_text(whole)

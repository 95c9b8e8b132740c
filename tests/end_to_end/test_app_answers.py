"""Bundles as a build writes them, of segmentation, a waveform network and a detector: right answers for real files."""

import json
import wave

import answer_tasks
import numpy as np
import onnxruntime
import pytest
from building import TESTS, edgeopt, write_target
from PIL import Image
from python_sample import run_sample

RIGHT_PIXELS_RATIO = 0.95
"""Of a scene; edges of its parts may be off by a pixel."""


def build(folder, task, precisions='["int8", "fp32"]'):
    """Build a bundle without any training, and return it."""
    write_target(folder / "tiny.toml", precisions=precisions)
    spec = f"{TESTS / 'answer_tasks.py'}:{task}"
    done = edgeopt(folder, "build", spec, "--target", "tiny.toml", "--quick", "--no-train", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "edgeopt-out"


def answer(bundle, *arguments):
    """Return the lines of the Python sample, whose self-test passes."""
    done = run_sample(bundle, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    check, *lines = done.stdout.splitlines()
    assert check == "self-test: passed"
    return lines


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return build(tmp_path_factory.mktemp("scenes"), "scenes")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return build(tmp_path_factory.mktemp("words"), "words")


def test_each_pixel_of_a_photo_of_another_size_gets_its_class(scenes, tmp_path):
    pixels, classes = answer_tasks.draw_scene(np.random.default_rng(7), scale=4)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    lines = answer(scenes, tmp_path / "photo.jpg", tmp_path / "map.png")
    assert lines[0].endswith(": class map of 24x32")
    assert [line.split(": ")[0] for line in lines[1:]] == ["road", "tree", "car"]
    with Image.open(tmp_path / "map.png") as image:
        found = np.asarray(image)
    assert np.mean(found == classes) >= RIGHT_PIXELS_RATIO
    assert json.loads((scenes / "manifest.json").read_text())["outputs"][0]["class_axis"] == 1


@pytest.mark.parametrize("word", answer_tasks.WORDS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_recording_of_any_rate_is_heard_as_its_word(words, tmp_path, word, rate):
    samples = answer_tasks.make_wave(word, np.random.default_rng(7), rate, seconds=0.4)
    with wave.open(str(tmp_path / "word.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    assert answer(words, tmp_path / "word.wav")[0].startswith(f"{word}: ")


def test_the_boxes_of_a_photo_are_found_and_the_file_itself_says_how(tmp_path):
    pytest.importorskip("faster_coco_eval")
    bundle = build(tmp_path, "boxes", precisions='["fp32"]')
    pixels, boxes = answer_tasks.draw_rectangles(5)
    Image.fromarray(np.kron(pixels, np.ones((6, 6, 1), np.uint8))).save(tmp_path / "photo.png")
    lines = answer(bundle, tmp_path / "photo.png", tmp_path / "boxes.png")
    found = {line.split(": ")[0]: [float(corner) for corner in line.split(" at ")[1].split()] for line in lines}
    assert found.keys() == boxes.keys()
    for label, corners in boxes.items():
        np.testing.assert_allclose(found[label], np.multiply(corners, 6), atol=0.6)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["boxes"]["stride"] == 4
    assert {answer["label"] for answer in manifest["answers"] if answer["box"]["is_certain"]} == set(
        answer_tasks.COLORS
    )
    metadata = onnxruntime.InferenceSession(str(bundle / "model.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["edgeopt.boxes"]) == manifest["boxes"]

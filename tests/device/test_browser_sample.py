"""The browser sample of a bundle in a real headless Chromium: its self-test, and its answer for a file."""

import json

import numpy as np
import pytest
from app_bundles import draw_pixels, draw_rectangles, write_app_bundle
from PIL import Image


def answers_of(bundle):
    return json.loads((bundle / "manifest.json").read_text())["answers"]


def test_it_passes_its_self_test_and_answers_for_an_image_of_another_size(open_sample, tmp_path):
    bundle = write_app_bundle(tmp_path, "images")
    large = np.kron(draw_pixels(2), np.ones((3, 3, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.png")
    found = open_sample(bundle, tmp_path / "large.png")
    assert found["check"] == "self-test: passed"
    label = next(answer["label"] for answer in answers_of(bundle) if answer["sample"] == 2)
    assert found["answer"].startswith(f"{label}: ")


def test_it_answers_for_a_sound(open_sample, tmp_path):
    bundle = write_app_bundle(tmp_path, "sounds")
    found = open_sample(bundle, bundle / "golden" / "input-0-1.wav")
    assert found["check"] == "self-test: passed"
    label = next(answer["label"] for answer in answers_of(bundle) if answer["sample"] == 1)
    assert found["answer"].startswith(f"{label}: ")


def test_it_paints_the_boxes_of_an_image_on_it(open_sample, tmp_path):
    bundle = write_app_bundle(tmp_path, "boxes")
    pixels, boxes = draw_rectangles(2)
    Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8))).save(tmp_path / "scene.png")
    found = open_sample(bundle, tmp_path / "scene.png")
    assert found["check"] == "self-test: passed"
    assert {line.split(": ")[0] for line in found["answer"].splitlines()} == boxes.keys()
    names = np.array(found["picture"]["names"]).reshape(found["picture"]["height"], found["picture"]["width"])
    assert names.shape == (160, 192)
    for label, (left, top, right, bottom) in boxes.items():
        middle = 4 * (left + right), 4 * (top + bottom)
        edges = [
            (middle[1], 8 * left),
            (middle[1], 8 * right - 1),
            (8 * top, 8 * right - 1),
            (8 * bottom - 1, middle[0]),
        ]
        assert [names[edge] for edge in edges] == [label] * 4


@pytest.mark.parametrize(
    ("field", "value", "mistake"),
    [
        ("color", "rgb", "preprocessing of 'x' is off by "),
        ("resize", "stretch", "resizing of 'x' is off by "),
        ("mean", [0.0], "preprocessing of 'x' is off by "),
    ],
)
def test_a_mistake_in_preprocessing_is_shown(open_sample, tmp_path, field, value, mistake):
    bundle = write_app_bundle(tmp_path, "class maps")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["inputs"][0]["preprocessing"][field] = value
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert mistake in open_sample(bundle)["check"]

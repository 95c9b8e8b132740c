"""What a bundle says of its inputs: preprocessing as data, and warnings where it is missing or cannot be true."""

import numpy as np
import pytest

from edgeopt.bundle.stated_inputs import GoldenInput, compare_inputs
from edgeopt.pipeline.task_data import choose_spread
from edgeopt.records.preprocessing import ImagePreprocessing

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4)) / 255
INPUTS = {"x": (PIXELS - 0.5).astype(np.float32) / np.float32(0.25)}
RIGHT = ImagePreprocessing(height=4, width=4, mean=(0.5,), std=(0.25,))


def stated(preprocessing, kind="torch", inputs=INPUTS):
    golden = {name: GoldenInput(values, 0, is_dynamic=False) for name, values in inputs.items()}
    return compare_inputs(preprocessing, golden, only_file=kind == "onnx")


@pytest.mark.parametrize(
    ("preprocessing", "kind", "warning"),
    [
        ("", "torch", "Give the task `preprocessing=edgeopt.ImagePreprocessing(...)`"),
        ("", "onnx", None),
        ("bytes divided by 255", "torch", None),
        (RIGHT, "torch", None),
        (ImagePreprocessing(height=4, width=4), "torch", "does not give its inputs: 'x' has values of"),
        (ImagePreprocessing(layout="nhwc", height=3, width=4), "torch", "'x' has the shape (2, 3, 4, 4), but"),
        (ImagePreprocessing(mean=(0.5,), std=(0.25,)), "torch", "'x' takes images of 4x4 only, but"),
        ({"y": RIGHT}, "torch", "'y' is not among the inputs x."),
    ],
)
def test_unknown_or_impossible_preprocessing_is_a_warning_and_is_not_published(preprocessing, kind, warning):
    found = stated(preprocessing, kind)
    assert len(found.warnings) == (warning is not None)
    assert all(warning in text for text in found.warnings)
    assert found.preprocessing == ({"x": RIGHT} if preprocessing == RIGHT else {})
    assert found.notes == ()


def test_inputs_between_pixels_are_a_note():
    found = stated(ImagePreprocessing(height=4, width=4, mean=(0.5,), std=(0.2,)))
    assert found.warnings == ()
    assert "'x' are not made of whole pixels" in found.notes[0]


def test_words_are_asked_for_inputs_that_are_no_images():
    found = stated("", inputs={"ids": np.zeros((2, 7), np.int64)})
    assert "Say it in words" in found.warnings[0]


@pytest.mark.parametrize(
    ("classes", "samples", "wanted", "chosen"),
    [
        (np.repeat([0, 1, 2], 4), 12, 3, [0, 4, 8]),
        (np.array([5, 5, 5, 5, 9]), 5, 3, [0, 1, 4]),
        (np.arange(100), 100, 4, [0, 25, 50, 75]),
        (None, 10, 3, [0, 3, 6]),
        (None, 2, 2, [0, 1]),
    ],
)
def test_golden_samples_show_as_many_classes_as_there_is_room_for(classes, samples, wanted, chosen):
    assert choose_spread(classes, samples, wanted) == chosen

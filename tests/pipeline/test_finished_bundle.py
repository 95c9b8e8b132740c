"""What a bundle says of its inputs: preprocessing as data, and warnings where it is missing or cannot be true."""

from types import SimpleNamespace

import numpy as np
import pytest
from builders import a_choice

from edgeopt.pipeline.artifacts import finished_bundle
from edgeopt.pipeline.task_data import choose_spread
from edgeopt.records.preprocessing import ImagePreprocessing

INPUTS = {"x": np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)}


def a_build(preprocessing, kind="torch"):
    task = SimpleNamespace(preprocessing=preprocessing, kind=kind, input_names=("x",))
    return SimpleNamespace(data=SimpleNamespace(task=task, golden_inputs=INPUTS))


def warnings_of(preprocessing, kind="torch"):
    build = a_build(preprocessing, kind)
    return finished_bundle._with_warnings(build, a_choice(), finished_bundle._preprocessing(build)).warnings


@pytest.mark.parametrize(
    ("preprocessing", "kind", "warning"),
    [
        ("", "torch", "The task has no `preprocessing` as data"),
        ("", "onnx", None),
        ("bytes divided by 255", "torch", None),
        (ImagePreprocessing(mean=(0.5,), std=(0.05,)), "torch", None),
        (ImagePreprocessing(), "torch", "The task's own preprocessing does not give its inputs: 'x' has values of"),
        (ImagePreprocessing(layout="nhwc"), "torch", "'x' has the shape (2, 3, 4, 4), but its preprocessing says"),
        ({"y": ImagePreprocessing()}, "torch", "there is no input 'y'; there are x."),
    ],
)
def test_unknown_or_impossible_preprocessing_is_a_warning(preprocessing, kind, warning):
    found = warnings_of(preprocessing, kind)
    assert len(found) == (warning is not None)
    assert all(warning in text for text in found)


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

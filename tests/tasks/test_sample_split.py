"""Which samples train and which select: evenly from sorted samples, and from ones whose classes take turns."""

import numpy as np
import pytest

from edgeopt.tasks.onnx_data.samples import GivenSamples, SampleGroup
from edgeopt.tasks.onnx_data.split import calibrating_part, samples_in, split_by_use

COUNT, CLASSES = 1000, 10


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(
    "labels", [np.arange(COUNT) % CLASSES, np.arange(COUNT) * CLASSES // COUNT], ids=["in turn", "sorted"]
)
def test_every_part_has_samples_of_every_class(labels, trains):
    group = SampleGroup({"x": labels[:, None].astype(np.float32)}, labels, COUNT)
    split = split_by_use(GivenSamples((group,), {"x": 0}), batch=1, trains=trains, are_sequences=False)
    parts = [split.calibrating, split.selecting, *([split.training] if trains else [])]
    for part in parts:
        counts = np.bincount(np.concatenate([one.labels for one in part]), minlength=CLASSES)
        assert counts.min() > 0.4 * samples_in(part) / CLASSES
    used = np.concatenate([one.inputs["x"] for one in (*(split.training or split.calibrating), *split.selecting)])
    assert len(used) == COUNT


@pytest.mark.parametrize(("count", "batch", "expected"), [(33, 1, 33), (385, 1, 384), (769, 1, 384), (388, 9, 387)])
def test_as_many_calibrate_as_there_are_or_as_are_enough(count, batch, expected):
    group = SampleGroup({"x": np.arange(count, dtype=np.float32)[:, None]}, None, count)
    (found,) = calibrating_part((group,), {"x": 0}, batch)
    values = found.inputs["x"][:, 0]
    assert len(values) == len(set(values.tolist())) == expected

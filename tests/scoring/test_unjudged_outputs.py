"""Outputs that have no row for each sample, such as a learned temperature: they are not judged, or listed."""

import numpy as np
import pytest

from edgeopt.errors import DataError
from edgeopt.records.scoring import ScoreWish
from edgeopt.scoring.choose import choose_score

COUNT = 60
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 4, COUNT)
LOGITS = RANDOM.standard_normal((COUNT, 4)).astype(np.float32)


@pytest.mark.parametrize("value", [np.float32(1.5), np.ones(7, np.float32), np.ones((1, 4), np.float32)])
@pytest.mark.parametrize("first", [True, False])
def test_an_output_without_a_row_for_each_sample_is_not_judged(value, first):
    batches = [(value, logits) if first else (logits, value) for logits in np.split(LOGITS, 4)]
    labels = np.split(LABELS, 4)
    names = ["temperature", "logits"] if first else ["logits", "temperature"]
    kind = choose_score(batches, names, labels, ScoreWish(), source="eval")
    assert (kind.parts[0].output, kind.parts[0].index) == ("logits", int(first))


def test_outputs_of_which_none_has_a_row_for_each_sample_are_listed():
    steps = np.moveaxis(RANDOM.standard_normal((COUNT, 9, 4)), 0, 1)
    with pytest.raises(
        DataError, match=r"no output has a row for each of the 60 labels.*'scale' \(\), 'steps' \(9, 60, 4\)"
    ):
        choose_score([(np.float32(2), steps)], ["scale", "steps"], [LABELS], ScoreWish(), source="eval")
    with pytest.raises(DataError, match=r"'scale' \(\)"):
        choose_score([(np.float32(2), LOGITS)], ["scale", "y"], [LABELS], ScoreWish(output="scale"), source="eval")

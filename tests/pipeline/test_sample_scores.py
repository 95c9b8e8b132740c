"""Scores of single samples that are those of batches are refused: their interval would be far too short."""

import pytest

from edgeopt.errors import TaskError
from edgeopt.pipeline.artifacts.evaluator import check_sample_scores


def test_one_score_for_each_batch_is_refused():
    with pytest.raises(TaskError, match=r"task 'mine': sample_scores\(\) gives 12 numbers for 1,500 samples in 12"):
        check_sample_scores(12, 12, 1500, "mine")


@pytest.mark.parametrize(("scores", "batches", "samples"), [(1500, 12, 1500), (1400, 12, 1500), (12, 12, 12)])
def test_samples_without_a_label_may_be_left_out(scores, batches, samples):
    check_sample_scores(scores, batches, samples, "mine")

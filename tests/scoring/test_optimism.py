"""What the chosen file loses on other data: the estimate is near the truth where the truth is known."""

import numpy as np
import pytest

from edgeopt.scoring.optimism import ScoredFile, estimate_optimism

SAMPLES, LIMIT = 1000, 0.01


def a_file(size, differences):
    """Return a file by its loss on each sample."""
    drop = float(np.mean(differences))
    margin = 1.96 * float(np.std(differences)) / np.sqrt(len(differences))
    return ScoredFile(size, lambda counts: float(counts @ differences / counts.sum()), drop, margin)


def losses(random, true_drop, files):
    """Return the losses of files on the same samples: 2 % of the answers become right, the others wrong."""
    ones = random.random((files, SAMPLES)) < 0.02 + true_drop
    return ones.astype(float) - (random.random((files, SAMPLES)) < 0.02)


def choose(files):
    return next((file for file in sorted(files) if file.drop + file.margin <= LIMIT), None)


def test_a_single_file_that_always_keeps_the_limit_owes_nothing_to_the_samples():
    random = np.random.default_rng(0)
    differences = (random.random(SAMPLES) < 0.002).astype(float)
    assert estimate_optimism([a_file(100, differences)], 0.05, SAMPLES) == pytest.approx(0, abs=2e-4)


def test_many_files_at_the_edge_owe_about_as_much_as_other_samples_show():
    random, owed, estimates = np.random.default_rng(1), [], []
    for _ in range(30):
        files = [a_file(100 + index, row) for index, row in enumerate(losses(random, 0.004, 20))]
        chosen = choose(files)
        if chosen is not None:
            owed.append(0.004 - chosen.drop)
            estimates.append(estimate_optimism(files, LIMIT, SAMPLES))
    assert np.mean(owed) > 0.003  # the choice looks better than it is
    assert 0.3 * np.mean(owed) < np.mean(estimates) < 1.5 * np.mean(owed)


def test_if_no_draw_chooses_anything_nothing_is_owed():
    assert estimate_optimism([a_file(100, np.full(SAMPLES, 0.5))], LIMIT, SAMPLES) == 0

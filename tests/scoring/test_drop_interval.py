"""One rule decides how the paired interval of a drop is computed, for builds, bundles and benchmarks alike."""

from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.scoring.drop import (
    drop_interval,
    mean_drop_interval,
    resampled_drop_interval,
    rows_drop_interval,
    sums_drop_interval,
)

RNG = np.random.default_rng(0)
RIGHT = {"before": RNG.integers(0, 2, 100).astype(np.float64)}
RIGHT["after"] = np.where(RNG.random(100) < 0.1, 0.0, RIGHT["before"])
ROWS = {name: np.stack([values, np.ones(100)], axis=1) for name, values in RIGHT.items()}
COUNTS = [40, 60]


def ratio(sums):
    return float(sums[0] / sums[1])


def share_right(pairs):
    return float(np.concatenate([outputs for outputs, _ in pairs]).mean())


def a_rule(scores_rows=False):
    return SimpleNamespace(
        score_direction="higher",
        scores_rows=scores_rows,
        score_rows=lambda rows: ratio(rows.sum(0)),
        score_statistics=ratio,
        score=share_right,
    )


def scores(value=None, samples=None, rows=None):
    return [
        SimpleNamespace(
            value=float(RIGHT[name].mean()) if value is None else value,
            samples=None if samples is None else samples[name],
            rows=None if rows is None else rows[name],
        )
        for name in ("before", "after")
    ]


def pairs(name):
    return [(part, part) for part in np.split(RIGHT[name], [COUNTS[0]])]


def read_samples():
    return pairs("before"), pairs("after"), COUNTS


def refuse():
    pytest.fail("nothing has to be read")


def test_scores_of_samples_decide_if_the_score_is_their_mean():
    found = drop_interval(*scores(samples=RIGHT, rows=ROWS), a_rule(), refuse)
    assert found == mean_drop_interval(*RIGHT.values(), "higher")


@pytest.mark.parametrize("samples", [None, RIGHT])
def test_rows_decide_if_the_score_is_no_mean_of_scores_of_samples(samples):
    other = scores(value=2.0, samples=samples, rows=ROWS)
    assert drop_interval(*other, a_rule(), refuse) == sums_drop_interval(*ROWS.values(), ratio, "higher")
    by_rows = a_rule(scores_rows=True)
    expected = rows_drop_interval(*ROWS.values(), by_rows.score_rows, "higher")
    assert drop_interval(*other, by_rows, refuse) == expected


def test_samples_are_drawn_if_one_of_the_files_has_neither():
    before, after = scores(samples=RIGHT, rows=ROWS)
    after.samples = after.rows = None
    found = drop_interval(before, after, a_rule(), read_samples, seed=3)
    assert found == resampled_drop_interval(pairs("before"), pairs("after"), COUNTS, share_right, "higher", seed=3)

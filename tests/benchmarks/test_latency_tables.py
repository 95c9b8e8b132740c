"""Transformers and networks with splits have a latency table, though their files show sizes that no tensor has."""

import pytest

from benchmarks.latency_tables import compute_figures, try_one
from benchmarks.zoo.every import EVERY


@pytest.mark.parametrize("name", ["bert", "gpt", "llama", "yolo"])
def test_files_at_any_widths_are_sliced_out_of_the_originals(name, tmp_path):
    row = try_one(name, EVERY[name], tmp_path)
    assert row["failure"] is None
    assert row["groups"] > 4


def test_figures_count_architectures_with_channels_that_can_go():
    rows = [
        {"name": "a", "groups": 3, "failure": None},
        {"name": "b", "groups": 2, "failure": "another reason"},
        {"name": "c", "groups": 0, "failure": None},
        {"name": "d", "groups": None, "failure": "it cannot be traced"},
    ]
    found = compute_figures(rows)
    assert (found["architectures"], found["tables"]) == (2, 1)
    assert (found["without"], found["not_analysed"]) == ({"b": "another reason"}, {"d": "it cannot be traced"})

"""Tests of the figures of ``benchmarks/targets.py``."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.targets import compute_figures, trained_networks


def _trial(steps: list[str], parent: str | None = None) -> dict[str, Any]:
    return {"recipe": {"torch_steps": steps, "parent": parent}}


def _row(seconds: float, **choices: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": seconds, "choices": choices}


def _choice(training: float, size: int | None, *trials: dict[str, Any]) -> dict[str, Any]:
    winner = None if size is None else {"size_bytes": size}
    return {"seconds": {"train and make files": training}, "winner": winner, "trials": list(trials)}


def test_a_network_that_two_targets_use_counts_once() -> None:
    one, other = _trial(["prune", "distill"]), _trial(["prune", "distill"], parent="narrower")
    row = _row(9, car=_choice(1, 1, _trial([]), one), phone=_choice(1, 1, _trial([]), one, other))
    assert trained_networks(row) == 2


def test_costs_are_compared_with_the_most_expensive_search() -> None:
    one, other = _trial(["a"]), _trial(["b"])
    shared = _row(120, car=_choice(60, 100, one), phone=_choice(12, 210, other))
    own = {"car": _row(90, car=_choice(60, 100, one)), "phone": _row(70, phone=_choice(40, 200, other))}
    figures = compute_figures(shared, own)
    assert figures["cost_ratio_to_one_target"] == pytest.approx(1.2)
    assert figures["trainings_ratio_to_one_target"] == 2
    assert figures["seconds_ratio_to_own_searches"] == pytest.approx(0.75)
    assert figures["worst_size_ratio_to_own_search"] == pytest.approx(1.05)


def test_a_missing_winner_leaves_no_worst_size() -> None:
    shared = _row(10, car=_choice(1, 100, _trial(["a"])), phone=_choice(1, None, _trial(["a"])))
    own = {"car": _row(5, car=_choice(1, 100, _trial(["a"]))), "phone": _row(5, phone=_choice(1, 90, _trial(["a"])))}
    assert compute_figures(shared, own)["worst_size_ratio_to_own_search"] is None

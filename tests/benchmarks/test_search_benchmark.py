"""Tests of the pure parts of ``benchmarks/search.py``."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from benchmarks.pruned_files import EpochSize
from benchmarks.search import compute_figures, count_samples, cut_widths, find_edges, is_form_of_grid
from edgeopt.records.codec import to_json
from edgeopt.records.groups import Branch, ChannelGroup, GroupTable
from edgeopt.records.low_rank import Factorization
from edgeopt.records.recipe import Distill, GraphStep, Importance, LowRank, Prune, Quantize, Recipe, TorchStep

EPOCH = EpochSize(samples=100, batches=4)
DISTILL = Distill(
    epochs=6, optimizer="sgd", learning_rate=0.1, weight_decay=0.0, warmup_ratio=0.1, temperature=4.0, kl_weight=1.0,
    mse_weight=0.0, hard_weight=0.0,
)  # fmt: skip
QUANTIZE = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=8)


def _recipe(width: int, *graph_steps: GraphStep, more: tuple[TorchStep, ...] = (), parent: str | None = None) -> Recipe:
    prune = Prune(importance=Importance(), widths={"a": width})
    return Recipe(torch_steps=(prune, *more, DISTILL), graph_steps=graph_steps, seed=0, parent=parent)


def _grid_row(width_index: int, depth_index: int, size_bytes: int | None, samples: int) -> dict[str, Any]:
    return {
        "width_index": width_index, "depth_index": depth_index, "width_ratio": 1 / (1 + width_index), "left_out": [],
        "size_bytes": size_bytes, "samples_seen": {f"{width_index} {depth_index}": samples},
    }  # fmt: skip


def _trial(number: int, size_bytes: int, recipe: Recipe, misses: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "number": number, "status": "measured", "size_bytes": size_bytes, "misses": list(misses), "notes": [],
        "recipe": json.loads(to_json(recipe)),
    }  # fmt: skip


def _task(*trials: dict[str, Any], winner: int | None, samples: int) -> dict[str, Any]:
    grid = [_grid_row(w, d, 1000 - 100 * w - 10 * d if w < 2 else None, 50) for w in range(3) for d in range(3)]
    build = {"winner": winner, "trials": list(trials), "samples_seen": {"one": samples}}
    return {"grid": grid, "size": [3, 3], "build": build}


def test_a_network_counts_once_and_only_for_the_epochs_that_it_was_trained() -> None:
    stopped = "trained for 4 of 6 epochs: it could not reach the limit"
    made = [(_recipe(8), ()), (_recipe(8, QUANTIZE), ()), (_recipe(4), ("a note", stopped)), (_recipe(4, QUANTIZE), ())]
    assert sorted(count_samples(made, EPOCH).values()) == [400, 600]


def test_the_trained_model_costs_nothing() -> None:
    assert count_samples([(Recipe(torch_steps=(), graph_steps=(QUANTIZE,), seed=0, parent=None), ())], EPOCH) == {}


def test_factorized_layers_and_weights_with_bits_of_their_own_are_not_forms_of_the_grid() -> None:
    low_rank = LowRank(layers={"a.weight": Factorization(rank=2, form="pointwise")})
    own_bits = msgspec.structs.replace(QUANTIZE, weight_bits=8, bits_of=(("a", 4),))
    assert is_form_of_grid(_recipe(8, QUANTIZE))
    assert is_form_of_grid(_recipe(8, msgspec.structs.replace(QUANTIZE, weight_bits=4)))
    assert not is_form_of_grid(_recipe(8, own_bits))
    assert not is_form_of_grid(_recipe(8, QUANTIZE, more=(low_rank,)))


@pytest.mark.parametrize(
    ("place", "edges"),
    [((0, 0), ["widest", "deepest"]), ((2, 1), ["narrowest"]), ((1, 2), ["shallowest"]), ((1, 1), [])],
)
def test_edges_of_the_grid_are_named(place: tuple[int, int], edges: list[str]) -> None:
    assert find_edges(_grid_row(*place, 1, 1), (3, 3)) == edges


def test_the_smallest_file_of_the_same_form_is_compared_with_the_grids_and_the_winner_too() -> None:
    low_rank = LowRank(layers={"a.weight": Factorization(rank=2, form="pointwise")})
    trials = (
        _trial(1, 924, _recipe(8, QUANTIZE)),
        _trial(2, 700, _recipe(8, QUANTIZE, more=(low_rank,))),
        _trial(3, 500, _recipe(4, QUANTIZE), misses=("score",)),
    )
    figures = compute_figures({"a": _task(*trials, winner=2, samples=90)})
    best = 880  # the second of three widths, the last of three depths
    assert figures["size_against_exhaustive_ratio"] == pytest.approx(924 / best)
    assert figures["winner_size_against_exhaustive_ratio"] == pytest.approx(700 / best)
    assert figures["training_cost_ratio"] == pytest.approx(90 / 450)
    assert figures["best_at_edge"] == {"a": ["shallowest"]}
    assert (figures["tasks"], figures["grid_networks"]) == (1, 9)


def test_the_worst_task_counts_and_an_unfinished_grid_does_not() -> None:
    one = _task(_trial(1, 880, _recipe(8, QUANTIZE)), winner=1, samples=90)
    other = _task(_trial(1, 968, _recipe(8, QUANTIZE)), winner=1, samples=45)
    unfinished = one | {"grid": one["grid"][:-1]}
    figures = compute_figures({"a": one, "b": other, "c": unfinished})
    assert figures["size_against_exhaustive_ratio"] == pytest.approx(1.1)
    assert figures["training_cost_ratio"] == pytest.approx(0.2)
    assert figures["tasks"] == 2


def test_without_a_winner_there_is_no_ratio_of_sizes() -> None:
    figures = compute_figures({"a": _task(_trial(1, 1, _recipe(8), misses=("score",)), winner=None, samples=90)})
    assert figures["size_against_exhaustive_ratio"] is None
    assert figures["winner_size_against_exhaustive_ratio"] is None


def test_a_cut_leaves_out_the_branches_of_the_least_measured_loss_whole() -> None:
    groups = [
        ChannelGroup(name=name, channels=32, importance=(1.0,) * 32, frozen_by=None, in_convolution=True)
        for name in "xab"
    ]
    branches = [
        Branch(name=f"branch {name}", groups=(name,), tensors=(), loss=loss, half_loss=0.0)
        for name, loss in (("a", 0.5), ("b", 0.2))
    ]
    table = GroupTable(groups=tuple(groups), tensors=(), branches=tuple(branches))
    assert cut_widths(table, 0.6, 1, 8) == (("branch b",), {"x": 24, "a": 24, "b": 0})
    assert cut_widths(table, 1.0, 0, 8) == ((), {"x": 32, "a": 32, "b": 32})

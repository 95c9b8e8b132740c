"""Which candidates of a finished search another target takes, and networks whose trainings ended early."""

from types import SimpleNamespace

import msgspec
import pytest
from builders import A_DISTILL, a_baseline, a_budget, a_profile
from stub_builds import a_stub_build

from edgeopt.pipeline.search.candidate import Candidate, SharedCandidates, suits, trained_to_the_end
from edgeopt.pipeline.search.driver import Search
from edgeopt.pipeline.search.sizes import KnownSizes
from edgeopt.pipeline.search.trial_runner import TrialRunner
from edgeopt.planning.bisection import Point
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.recipe import Distill, Importance, Prune, QuantizeAware, Sparsify
from edgeopt.records.scoring import ScoreFloor
from edgeopt.store.trial_list import TrialList

IMPORTANCE = Importance()
INT8 = QuantizeAware(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=8)
ZEROS = Sparsify(method="magnitude", ratio=0.5, scope="global", schedule="cubic")


def a_candidate(*steps):
    return Candidate(steps=steps, parent=None)


@pytest.mark.parametrize(
    ("step", "changes", "metric", "expected"),
    [
        (Prune(importance=IMPORTANCE, widths={"a": 16, "b": 0}), {"channel_step": 8}, "file", True),
        (Prune(importance=IMPORTANCE, widths={"a": 12}), {"channel_step": 8}, "file", False),
        (INT8, {"activation_type": "uint8"}, "file", True),
        (INT8, {"activation_type": "int8"}, "file", False),
        (INT8, {"activation_type": "uint8", "precisions": ("fp32",)}, "file", False),
        (ZEROS, {}, "file", False),
        (ZEROS, {}, "download", True),
    ],
)
def test_a_candidate_of_another_target_is_taken_if_it_is_one_for_this_target(step, changes, metric, expected):
    profile = msgspec.structs.replace(a_profile(), **changes)
    build = a_stub_build(profile=profile, budget=a_budget(size_metric=metric))
    assert suits(build, a_candidate(step, A_DISTILL), channel_step=4) == expected


def test_widths_of_a_target_with_a_multiple_of_the_step_suit_also_if_they_are_none_as_of_heads():
    build = a_stub_build(profile=msgspec.structs.replace(a_profile(), channel_step=8))
    heads = a_candidate(Prune(importance=IMPORTANCE, widths={"heads": 3}), A_DISTILL)
    assert [suits(build, heads, channel_step) for channel_step in (8, 16, 4)] == [True, True, False]


def test_shared_candidates_of_several_searches_are_kept_once_and_in_order():
    first = msgspec.structs.replace(a_candidate(A_DISTILL), notes=("predicted to take 0.5 of the time",))
    second = a_candidate(Prune(importance=IMPORTANCE, widths={"stem": 8}), A_DISTILL)
    good, bad = Point(0.3, True), Point(0.2, False)
    car, phone = (msgspec.structs.replace(a_profile(), name=name) for name in ("car", "phone"))
    shared = SharedCandidates().with_those_of(car, [first], [good]).with_those_of(phone, [first, second], [good, bad])
    assert [one.steps for one in shared.candidates] == [first.steps, second.steps]
    assert [one.notes for one in shared.candidates] == [("its widths were chosen for the target car",), ()]
    assert shared.points == (good, bad)
    assert from_json(to_json(shared), SharedCandidates) == shared


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([Point(1.0, True)], False),  # no network of another target suits this one
        ([Point(1.0, True), Point(0.3, True), Point(0.2, False)], True),
        ([Point(1.0, True), Point(0.5, True), Point(0.2, False)], False),  # the smallest good one does not suit
        ([Point(1.0, True), Point(0.3, True)], False),
        ([Point(1.0, True), Point(0.3, False), Point(0.2, False)], False),  # this target loses more in its precision
        ([Point(1.0, True), Point(0.3, True), Point(0.2, True)], False),
    ],
)
def test_sizes_are_found_if_they_are_as_good_for_this_target_as_for_others(points, expected):
    shared = SharedCandidates(points=(Point(1.0, True), Point(0.5, True), Point(0.3, True), Point(0.2, False)))
    assert shared.answers(points) == expected


def test_of_two_networks_of_a_size_the_one_that_was_trained_to_its_end_counts():
    stopped, whole = (SimpleNamespace(ratio=0.3, stopped_for=floor) for floor in ("a floor", None))
    stopped.key, whole.key = "a", "b"
    runner = SimpleNamespace(networks={"a": stopped, "b": whole})
    sizes = KnownSizes(a_stub_build(), runner)
    assert sizes.network(0.3) is whole
    sizes.refined = {"b"}  # it was made of the other one
    assert sizes.network(0.3) is stopped
    assert sizes.network(0.4) is None


def a_runner(baseline_score=0.9, max_drop=0.01):
    build = a_stub_build(budget=a_budget(max_score_drop=max_drop, min_score=None))
    runner = TrialRunner(build, None, None, None, 0, None)
    baseline = a_baseline()
    score = msgspec.structs.replace(baseline.outcome.score, value=baseline_score, drop=0.0)
    runner.trials.append(
        msgspec.structs.replace(baseline, outcome=msgspec.structs.replace(baseline.outcome, score=score))
    )
    return runner


def a_network(score, stopped_at=None):
    floor = None if stopped_at is None else ScoreFloor(value=stopped_at, max_drop=0.01, direction="higher")
    return SimpleNamespace(torch_score=score, stopped_for=floor, ended_after=None)


@pytest.mark.parametrize(
    ("score", "stopped_at", "hopeless"),
    [
        (0.895, None, False),
        (0.885, None, False),  # below the floor of 0.89, but by less than another allowed drop
        (0.875, None, True),
        (0.885, 0.89, True),  # its training ended early
        (0.895, 0.95, False),  # for a stricter limit
        (None, None, False),
    ],
)
def test_a_network_far_below_the_limit_is_known_by_its_own_score(score, stopped_at, hopeless):
    assert a_runner().is_hopeless(a_network(score, stopped_at)) == hopeless


def test_without_a_limit_on_the_score_no_network_is_hopeless():
    runner = a_runner(max_drop=None)
    assert runner.floor is None
    assert not runner.is_hopeless(a_network(0.1))


def test_a_training_that_ended_for_a_stricter_limit_may_improve():
    assert a_runner().may_improve(a_network(0.88, 0.95))
    assert not a_runner().may_improve(a_network(0.88, 0.8905))  # the baseline of another processor
    assert not a_runner().may_improve(a_network(0.88, 0.89))
    assert not a_runner().may_improve(a_network(0.88))
    assert not a_runner().may_improve(None)


def test_a_training_to_the_end_is_another_network():
    prune = Prune(importance=IMPORTANCE, widths={"a": 8})
    whole = trained_to_the_end(a_candidate(prune, A_DISTILL))
    assert whole.steps[0] == prune
    assert isinstance(whole.steps[1], Distill)
    assert not whole.steps[1].may_stop


GOOD, BAD = Point(0.35, True), Point(0.12, False)


@pytest.mark.parametrize(
    ("rounds", "found", "further", "has_winner", "expected"),
    [
        (1, [GOOD, BAD], "if needed", True, "refine"),
        (1, [Point(0.35, False), BAD], "if needed", True, "bisect from round 1"),
        (1, [GOOD, BAD], "always", True, "bisect from round 1"),
        (1, [GOOD, BAD], "if needed", False, "bisect from round 1"),
        (2, [GOOD, Point(0.12, True)], "if needed", True, "bisect from round 2"),
        (2, [GOOD, BAD], "if needed", True, "refine"),
        (2, [], "if needed", True, "bisect from round 1"),
    ],
)
def test_sizes_that_were_tried_for_another_target_are_a_first_round(
    monkeypatch, rounds, found, further, has_winner, expected
):
    shared = SharedCandidates(points=(Point(1.0, True), GOOD, BAD))
    for name in ("finished", "shared"):
        key = f"{name}_search_key" if name == "finished" else "shared_candidates_key"
        monkeypatch.setattr(f"edgeopt.pipeline.search.driver.{key}", lambda _, name=name: name)
    ledger = SimpleNamespace(get=lambda key, _: shared if key == "shared" else None, put=lambda *_: None)
    trials = TrialList(None, 1)
    build = a_stub_build(ledger=ledger, effort=SimpleNamespace(rounds=rounds))
    search = Search(build, SimpleNamespace(trials=trials, may_improve=lambda _: False))
    winner = 1 if has_winner else None
    search.sizes = SimpleNamespace(winner=winner, winning_ratio=0.35, ships=lambda _: True)
    search.further, done = further, []
    search.reuse = lambda _: list(found)
    search.unfinished = list
    search.under_new_limits = lambda points, below: []
    search.refine = lambda points: done.append("refine")
    search.bisect = lambda points, begun: done.append(f"bisect from round {begun + 1}")
    search.search()
    assert done == [expected]

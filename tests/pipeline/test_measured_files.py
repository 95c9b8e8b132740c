"""Which files of a network a quick build measures: not those that a smaller and quicker one has outdone."""

from types import SimpleNamespace

import pytest
from builders import a_baseline, a_budget, a_failed_trial, a_recipe, a_trial
from stub_builds import a_stub_build

from edgeopt.pipeline.search.candidate import ScoredArtifact, Variant
from edgeopt.pipeline.search.contenders import measure_variants
from edgeopt.select.limits import judge_limits


def a_variant(size_bytes, *, latency_ms=0.1, drop=0.0, pruned=True, int8=True):
    """A file, with the trial that it will be."""
    trial = a_trial(
        size_bytes, size_bytes=size_bytes, latency_ms=latency_ms, drop=drop, recipe=a_recipe(pruned=pruned, int8=int8)
    )
    return Variant(trial.recipe, ScoredArtifact(trial.outcome.artifact, trial.outcome.score), {}), trial


def measured(files, **changes):
    """Return the sizes of the files that are measured, in order, and how many are not."""
    limits = {"max_score_drop": 0.01, "max_latency_ms": 5.0} | changes.pop("limits", {})
    budget = a_budget(**limits)
    build = a_stub_build(budget=budget, effort=SimpleNamespace(is_first_look=changes.pop("quick", True)))
    trials = {id(variant): trial for variant, trial in files}
    runner = SimpleNamespace(
        build=build, trials=[a_baseline()], unmeasured=0, measure=lambda variant: trials[id(variant)],
        missed_limits=lambda outcome: {one.limit for one in judge_limits(outcome, budget) if not one.kept},
    )  # fmt: skip
    found = measure_variants(runner, [variant for variant, _ in files])
    return [trial.number for trial in found], runner.unmeasured


def test_the_smallest_file_that_keeps_every_limit_leaves_the_larger_ones_out():
    files = [a_variant(260, drop=0.5), a_variant(999, int8=False), a_variant(275), a_variant(107)]
    assert measured(files) == ([107], 3)
    assert measured(files, quick=False) == ([260, 999, 275, 107], 0)


def test_files_of_about_its_size_are_measured_since_the_quicker_one_wins():
    assert measured([a_variant(107), a_variant(110), a_variant(130)]) == ([107, 110], 1)


@pytest.mark.parametrize("smallest", [{"drop": 0.5}, {"latency_ms": 9.0}])
def test_larger_files_are_measured_if_the_smallest_misses_a_limit(smallest):
    files = [a_variant(400, int8=False), a_variant(107, **smallest), a_variant(260)]
    assert measured(files) == ([107, 260], 1)


def test_larger_files_are_measured_if_the_smallest_is_hardly_quicker_than_the_baseline():
    before_ms = a_baseline().outcome.measurement.timings[0].wall_ns[0] / 1e6
    files = [a_variant(107, latency_ms=0.97 * before_ms), a_variant(400, int8=False)]
    assert measured(files) == ([107, 400], 0)


def test_every_int8_file_of_the_original_is_measured_since_others_are_compared_with_it():
    files = [
        a_variant(800, pruned=False), a_variant(3000, pruned=False, int8=False), a_variant(300, pruned=False),
    ]  # fmt: skip
    assert measured(files) == ([800, 300], 1)


def test_nothing_is_left_out_if_the_quickest_is_wanted_and_failures_are_trials_too():
    files = [a_variant(107), a_variant(400)]
    assert measured(files, limits={"prefer": "latency"}) == ([107, 400], 0)
    failed = a_failed_trial(50)
    assert measured([*files, (Variant(failed.recipe, failed.outcome, {}), failed)]) == ([50, 107], 1)

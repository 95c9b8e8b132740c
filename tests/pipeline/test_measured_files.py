"""Which files of a network a quick build measures: not those that a smaller and quicker one has outdone."""

from types import SimpleNamespace

import pytest
from builders import a_baseline, a_budget, a_device, a_failed_trial, a_recipe, a_trial
from stub_builds import a_stub_build

from edgeopt.device.pool import DevicePool
from edgeopt.pipeline.search.candidate import CandidateTrials, ScoredArtifact, Variant
from edgeopt.pipeline.search.contenders import measure_spares, measure_variants
from edgeopt.pipeline.search.sizes import KnownSizes
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
    kind = changes.pop("kind", "stand-in")
    effort = SimpleNamespace(is_first_look=changes.pop("quick", True))
    build = a_stub_build(budget=budget, effort=effort, device_info=a_device(kind=kind), **changes)
    trials = {id(variant): trial for variant, trial in files}
    runner = SimpleNamespace(
        build=build, trials=[a_baseline()], spares=[], measure=lambda variant: trials[id(variant)],
        missed_limits=lambda outcome: {one.limit for one in judge_limits(outcome, budget) if not one.kept},
    )  # fmt: skip
    found, spares = measure_variants(runner, [variant for variant, _ in files])
    assert spares == runner.spares
    return [trial.number for trial in found], len(spares)


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


def test_on_the_target_float_files_are_measured_since_int8_has_to_be_no_slower():
    files = [a_variant(107), a_variant(400, int8=False), a_variant(260)]
    assert measured(files, kind="measured") == ([107, 400], 1)


def test_of_a_pool_of_devices_every_file_is_measured_already():
    pool = object.__new__(DevicePool)
    pool.devices = [SimpleNamespace(uri="ssh://a"), SimpleNamespace(uri="ssh://b")]
    assert measured([a_variant(107), a_variant(260)], device=pool) == ([107, 260], 0)


def test_spares_of_a_network_are_measured_if_its_file_is_barred():
    own, _ = a_variant(260)
    other, _ = a_variant(300, pruned=False)
    found = []
    runner = SimpleNamespace(spares=[own, other], measure=found.append)
    measure_spares(runner, own.recipe)
    assert (found, runner.spares) == ([own], [other])


def test_a_size_is_good_if_a_file_that_was_not_measured_would_ship():
    budget = a_budget(max_score_drop=0.01)
    original = a_trial(1, recipe=a_recipe(), drop=0.0)
    runner = SimpleNamespace(trials=[a_baseline(), original], precisions=("int8", "fp32"))
    sizes = KnownSizes(a_stub_build(budget=budget), runner)
    assert sizes.shipping_precision == "fp32"
    int8, (spare, _) = a_trial(2, recipe=a_recipe(pruned=True, int8=True), drop=0.0), a_variant(400, int8=False)
    network = SimpleNamespace(ratio=0.35)
    with_spare, without = (CandidateTrials(network, [int8], spares) for spares in ([spare], []))
    sizes.is_open = lambda result: False
    assert [point.good for point in sizes.points([with_spare, without], [0.3, 0.3])] == [True, False]

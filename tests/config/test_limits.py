"""Which source decides each limit, and limits that make no sense."""

import math

import msgspec
import pytest
from builders import a_budget, a_profile

from edgeopt.config.limits import LimitOptions, check_options, resolve_budget
from edgeopt.errors import ConfigError

PROFILE = a_profile(limits=a_budget(max_latency_ms=33.0, max_size_bytes=20_000_000, max_score_drop=0.01))


def test_the_profile_decides_if_no_other_source_does():
    assert resolve_budget(PROFILE, None, None, None) == PROFILE.limits
    assert resolve_budget(PROFILE, None, LimitOptions(), LimitOptions()) == PROFILE.limits


def test_a_tasks_own_budget_replaces_all_of_the_profiles_limits():
    own = a_budget(max_latency_ms=None, max_score_drop=2.5)
    assert resolve_budget(PROFILE, own, None, None) == own


def test_the_size_of_the_runtime_is_the_profiles_unless_the_task_states_one():
    profile = a_profile(limits=a_budget(max_size_bytes=20_000_000, runtime_size_bytes=3_000_000))
    own = a_budget(max_size_bytes=5_000_000)
    assert resolve_budget(profile, own, None, None).runtime_size_bytes == 3_000_000
    own = msgspec.structs.replace(own, runtime_size_bytes=1_000_000)
    assert resolve_budget(profile, own, None, LimitOptions(size_mb=4)).runtime_size_bytes == 1_000_000


def test_a_runtime_that_leaves_no_room_for_a_model_is_refused():
    profile = a_profile(limits=a_budget(max_size_bytes=20_000_000, runtime_size_bytes=3_000_000))
    reason = "the target 'phone' states a runtime of 3,000,000 bytes, and the size limit .* is 3,000,000 bytes: no"
    with pytest.raises(ConfigError, match=reason):
        resolve_budget(profile, None, None, LimitOptions(size_mb=3))
    assert resolve_budget(profile, None, None, LimitOptions(size_mb="none")).max_deciding_bytes is None
    assert resolve_budget(profile, None, None, LimitOptions(size_mb=3.5)).max_deciding_bytes == 500_000


def test_each_limit_is_decided_separately_by_the_first_source_that_sets_it():
    budget = resolve_budget(
        PROFILE,
        a_budget(max_latency_ms=1.0, max_size_bytes=1, max_peak_memory_bytes=7, max_score_drop=0.03),
        LimitOptions(latency_ms=2.0, size_mb=2.0),
        LimitOptions(latency_ms=3.0),
    )
    assert budget.max_latency_ms == 3.0  # the command line
    assert budget.max_size_bytes == 2_000_000  # edgeopt.toml
    assert budget.max_peak_memory_bytes == 7  # the task
    assert budget.max_score_drop == 0.03


def test_every_option_sets_its_limit_in_the_records_unit():
    options = LimitOptions(
        latency_ms=5, memory_mb=1.5, size_mb=0.25, max_drop=0.02, min_score=0.9, throughput=100, size_metric="download"
    )
    expected = msgspec.structs.replace(
        PROFILE.limits,
        max_latency_ms=5.0,
        max_peak_memory_bytes=1_500_000,
        max_size_bytes=250_000,
        max_score_drop=0.02,
        min_score=0.9,
        min_throughput_per_s=100.0,
        size_metric="download",
    )
    assert resolve_budget(PROFILE, None, None, options) == expected


def test_none_waives_a_limit_that_another_source_sets():
    waived = LimitOptions(latency_ms="none", memory_mb="none", size_mb="none", max_drop="none", min_score="none")
    budget = resolve_budget(PROFILE, None, LimitOptions(min_score=0.5), waived)
    assert (budget.max_latency_ms, budget.max_peak_memory_bytes, budget.max_size_bytes) == (None, None, None)
    assert (budget.max_score_drop, budget.min_score) == (None, None)


@pytest.mark.parametrize("name", ["latency_ms", "memory_mb", "size_mb", "throughput"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_is_not_above_zero_and_finite_is_refused(name, value):
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"^{option} {value:g} is not"):
        resolve_budget(PROFILE, None, None, LimitOptions(**{name: value}))


@pytest.mark.parametrize(("name", "value", "meant"), [("max_drop", 5, "0.05"), ("min_score", 92.5, "0.925")])
def test_a_percentage_is_refused_with_the_ratio_that_was_meant(name, value, meant):
    with pytest.raises(ConfigError, match=f"looks like a percentage.*write {meant}"):
        resolve_budget(PROFILE, None, LimitOptions(**{name: value}), None)


@pytest.mark.parametrize(("value", "advice"), [(90, "write 0.9"), (0.3, "95 in 100 are 0.95"), (1.0, "0.95")])
def test_a_confidence_that_is_none_is_refused(value, advice):
    with pytest.raises(ConfigError, match=f"--confidence {value:g} is not from 0.5 to below 1; .*{advice}"):
        resolve_budget(PROFILE, None, None, LimitOptions(confidence=value))
    assert resolve_budget(PROFILE, None, LimitOptions(confidence=0.9), None).confidence == 0.9


def test_a_tasks_own_budget_may_use_another_unit_of_score():
    assert resolve_budget(PROFILE, a_budget(min_score=40.0, max_score_drop=3.0), None, None).min_score == 40.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["max_drop", "min_score"])
def test_a_score_limit_that_is_not_finite_is_refused(name, value):
    with pytest.raises(ConfigError, match="not a finite number"):
        check_options(LimitOptions(**{name: value}), "--")


def test_a_negative_drop_is_refused_and_a_score_may_be_negative():
    with pytest.raises(ConfigError, match=r"--max-drop -0\.1 is negative"):
        check_options(LimitOptions(max_drop=-0.1), "--")
    check_options(LimitOptions(min_score=-3.0, max_drop=0.0), "--")


def test_an_impossible_limit_in_a_tasks_budget_is_refused_by_name():
    with pytest.raises(ConfigError, match="the task's own budget for 'phone': max_size_bytes is 0"):
        resolve_budget(PROFILE, a_budget(max_size_bytes=0), None, None)

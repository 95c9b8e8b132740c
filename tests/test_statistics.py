import math

import msgspec
import numpy as np
import pytest
from builders import a_comparison, a_measurement
from scipy import stats

from edgeopt.bench import worker
from edgeopt.records.measurement import Comparison
from edgeopt.statistics import (
    HOT_C,
    Interval,
    comparison_ratio,
    expanded_tail,
    find_noise,
    is_complete,
    is_decided,
    is_precise_enough,
    latency_interval_ms,
    load_ms,
    paired_drop_interval,
    percentile_interval,
    required_runs,
    throughput_per_s,
    verdict,
)

EXACT = 1e-8  # relative; a quantile goes through the tail of a normal distribution and back
COVERAGE_FLOOR = 0.88  # 95 % nominal, five units, 120 simulations: three standard errors and the bootstrap's own error


def processes(rng, count=5, runs=200, between=0.03, within=0.1):
    """Lognormal latencies around 1 ms whose median differs from process to process."""
    return [
        (1e6 * np.exp(rng.normal(0, between) + rng.normal(0, within, runs))).astype(int).tolist() for _ in range(count)
    ]


def compared(ratios, *, per_pair=1, runs=5):
    return Comparison(
        sha256="a",
        against_sha256="b",
        blocks_ns=tuple((round(ratio * 100_000),) * runs for ratio in ratios),
        against_blocks_ns=((100_000,) * runs,) * len(ratios),
        clock="cpu",
        blocks_per_pair=per_pair,
    )


@pytest.mark.parametrize("count", [3, 4, 5, 8, 31])
def test_the_expanded_tail_of_a_bootstrap_gives_the_width_of_students_t(count):
    width = -stats.norm.ppf(expanded_tail(count, 0.95)) * math.sqrt((count - 1) / count)
    assert math.isclose(width, stats.t.ppf(0.975, count - 1), rel_tol=EXACT)


def test_the_expanded_tail_is_that_of_the_example():
    assert expanded_tail(5, 0.95) == pytest.approx(0.00095, abs=5e-6)


def test_a_percentile_is_that_of_the_pooled_samples():
    interval = percentile_interval([[1, 2, 3], [4, 5]], 50)
    assert interval.value == 3
    assert interval.low <= 3 <= interval.high


def test_the_interval_covers_the_true_percentile_even_if_processes_differ():
    rng = np.random.default_rng(1)
    truth = 1e6 * math.exp(stats.norm.ppf(0.9) * math.hypot(0.03, 0.1))
    intervals = [percentile_interval(processes(rng), 90) for _ in range(120)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert covered >= COVERAGE_FLOOR


def test_different_processes_give_a_wider_interval_than_equal_ones():
    rng = np.random.default_rng(2)
    equal = percentile_interval(processes(rng, between=0.0), 50)
    different = percentile_interval(processes(rng, between=0.1), 50)
    assert different.high - different.low > 3 * (equal.high - equal.low)


def test_processes_of_unequal_length_and_a_single_run_have_an_interval():
    assert percentile_interval([[5]], 90) == Interval(5, 5, 5)
    interval = percentile_interval([[5], [6] * 100, [7] * 3], 50)
    assert interval.value == 6


def test_the_same_samples_give_the_same_interval():
    samples = processes(np.random.default_rng(3))
    assert percentile_interval(samples, 99) == percentile_interval(samples, 99)


@pytest.mark.parametrize(("percentile", "runs"), [(50, 7), (90, 44), (99, 459)])
def test_after_the_required_runs_the_slowest_one_bounds_the_percentile(percentile, runs):
    assert required_runs(percentile) == runs
    assert (percentile / 100) ** runs <= 0.01 < (percentile / 100) ** (runs - 1)


def test_a_measurement_ends_early_when_its_interval_is_narrow():
    rng = np.random.default_rng(6)
    quiet = processes(rng, count=3, between=0.003, within=0.005)
    assert is_precise_enough(quiet, 90, None)
    assert not is_precise_enough(quiet[:2], 90, None)
    assert not is_precise_enough([process[:10] for process in quiet], 90, None)
    assert not is_precise_enough(processes(rng, count=3, between=0.2), 90, None)


@pytest.mark.parametrize(("limit_ns", "ends"), [(10e6, True), (1.2e6, False), (0.2e6, True)])
def test_a_wider_interval_is_enough_if_the_limit_is_far_away(limit_ns, ends):
    samples = [[950_000, 1_050_000] * 100, [960_000, 1_060_000] * 100, [1_000_000, 1_100_000] * 100]
    assert is_precise_enough(samples, 90, limit_ns) == ends
    assert not is_precise_enough(samples, 90, None)


def test_a_measurement_that_ended_early_for_a_far_limit_is_not_complete_for_a_near_one():
    samples = [[950_000, 1_050_000] * 100, [960_000, 1_060_000] * 100, [1_000_000, 1_100_000] * 100]
    early = timed_as(*samples)
    assert early.rule.processes > 3
    assert is_complete(early, 90, 10.0)
    assert not is_complete(early, 90, 1.2)
    assert is_complete(timed_as(*samples, *samples), 90, 1.2)


def timed_as(*walls, load=1.0):
    """Return a measurement whose processes had these runs."""
    timing = a_measurement().timings[0]
    timings = tuple(
        msgspec.structs.replace(
            timing, wall_ns=tuple(map(int, wall)), cpu_ns=tuple(int(ns / load) for ns in wall), contended=load > 1.05
        )
        for wall in walls
    )
    return msgspec.structs.replace(a_measurement(), timings=timings)


def test_quiet_processes_have_no_noise():
    rng = np.random.default_rng(7)
    for _ in range(50):
        assert find_noise(timed_as(*processes(rng, between=0.01, within=0.02))) == {}
        assert find_noise(timed_as(*[1e6 * (1 + rng.exponential(0.1, 100)) for _ in range(5)])) == {}


def test_other_load_is_noticed():
    quiet = [np.full(50, 1e6)] * 4
    assert find_noise(timed_as(*quiet, load=1.3)) == {"load": pytest.approx(0.3, abs=0.001)}


def test_a_process_unlike_the_others_is_noticed():
    found = find_noise(timed_as(np.full(50, 1e6), np.full(50, 1e6), np.full(50, 1.25e6)))
    assert found == {"unlike processes": pytest.approx(0.25)}


def test_a_drifting_speed_is_noticed():
    rng = np.random.default_rng(8)
    found = find_noise(timed_as(*[np.linspace(1e6, 1.2e6, 90) * rng.normal(1, 0.01, 90) for _ in range(3)]))
    assert found == {"drift": pytest.approx(0.13, abs=0.02)}


def test_two_speeds_are_noticed():
    rng = np.random.default_rng(9)
    runs = [1e6 * np.where(rng.random(200) < 0.3, 1.4, 1.0) * rng.normal(1, 0.01, 200) for _ in range(3)]
    assert find_noise(timed_as(*runs)) == {"two speeds": pytest.approx(0.4, abs=0.02)}


def test_too_few_runs_for_the_percentile_are_reported():
    few = timed_as(*[np.full(30, 1e6)] * 3)
    assert find_noise(few, 90) == {}
    assert find_noise(few, 99) == {"few runs": pytest.approx(90 / 459)}


@pytest.mark.parametrize(
    ("cooled_seconds", "start_c", "found"), [(120.0, 71.5, {"heat": 71.5}), (9.0, 58.0, {}), (0.0, 45.0, {})]
)
def test_a_processor_that_stayed_hot_is_reported(cooled_seconds, start_c, found):
    quiet = timed_as(*[np.full(50, 1e6)] * 3)
    first = msgspec.structs.replace(
        quiet.timings[0], cooled_seconds=cooled_seconds, temperatures_c=(start_c, start_c + 3)
    )
    assert HOT_C == worker.COOL_C
    assert find_noise(msgspec.structs.replace(quiet, timings=(first, *quiet.timings[1:]))) == found


def test_no_samples_are_an_error():
    with pytest.raises(ValueError, match="no samples"):
        percentile_interval([], 50)


def test_a_measurement_is_read_in_milliseconds_and_samples_per_second():
    measurement = a_measurement()
    median = latency_interval_ms(measurement, 50)
    pooled = np.concatenate([timing.wall_ns for timing in measurement.timings])
    assert math.isclose(median.value, np.median(pooled) / 1e6)
    assert math.isclose(throughput_per_s(measurement), measurement.batch_size / (pooled.mean() / 1e9))
    assert math.isclose(load_ms(measurement), np.median([timing.load_ns for timing in measurement.timings]) / 1e6)


def test_six_pairs_give_the_range_of_their_ratios():
    assert comparison_ratio(compared([0.8, 0.82, 0.78, 0.81, 0.79, 0.83])) == Interval(0.805, 0.78, 0.83)


def test_twelve_pairs_leave_one_out_at_each_end():
    middle = [0.8, 0.8, 0.81, 0.82, 0.83, 0.84, 0.84, 0.84, 0.85, 0.86]
    assert comparison_ratio(compared([0.5, *middle, 2.0])) == Interval(0.835, 0.8, 0.86)


def test_all_turns_of_one_pair_of_processes_count_once():
    ratios = [1.2, 1.2, 5.0] + [0.9, 0.9, 0.9] * 5
    assert comparison_ratio(compared(ratios, per_pair=3)) == Interval(0.9, 0.9, 1.2)


def test_slow_changes_of_the_machines_speed_cancel():
    speed = np.repeat([1.0, 1.0, 1.7], 4)
    fast = compared([0.9] * 12, per_pair=2)
    drifting = Comparison(
        sha256="a",
        against_sha256="b",
        blocks_ns=tuple(tuple(round(ns * s) for ns in b) for b, s in zip(fast.blocks_ns, speed, strict=True)),
        against_blocks_ns=tuple(
            tuple(round(ns * s) for ns in b) for b, s in zip(fast.against_blocks_ns, speed, strict=True)
        ),
        clock="cpu",
        blocks_per_pair=2,
    )
    assert comparison_ratio(drifting) == pytest.approx(comparison_ratio(fast))


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.8] * 6, "faster"),
        ([1.25] * 6, "slower"),
        ([0.8] * 5 + [1.0], "no difference"),
        ([0.995] * 6, "no difference"),
        ([1.005] * 6, "no difference"),
        ([0.9, 1.1, 1.0, 0.95, 1.05, 1.0], "no difference"),
    ],
)
def test_a_verdict_needs_every_pair_and_more_than_the_minimum_effect(ratios, expected):
    assert verdict(compared(ratios)) == expected


def pairs_until_decided(draw):
    """Add pairs of processes as ``compare`` does; ``draw`` gives the ratio of one."""
    ratios = [draw()]
    while not is_decided(compared(ratios)):
        ratios.append(draw())
    return compared(ratios)


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.06])
def test_equal_files_are_called_different_in_less_than_two_percent(noise):
    rng = np.random.default_rng(4)
    found = [pairs_until_decided(lambda: math.exp(rng.normal(0, noise))) for _ in range(1000)]
    assert np.mean([verdict(comparison) != "no difference" for comparison in found]) < 0.02


@pytest.mark.parametrize("effect", [0.95, 1.05])
def test_five_percent_are_found_if_pairs_vary_by_two_percent_and_one_in_fifteen_is_off(effect):
    rng = np.random.default_rng(5)
    found = [
        pairs_until_decided(lambda: effect * math.exp(rng.normal(0, 0.1 if rng.random() < 1 / 15 else 0.02)))
        for _ in range(300)
    ]
    verdicts = [verdict(comparison) for comparison in found]
    assert np.mean([word == ("slower" if effect > 1 else "faster") for word in verdicts]) > 0.95


@pytest.mark.parametrize(
    ("ratios", "decided"),
    [
        ([0.5] * 5, False),
        ([0.5] * 6, True),
        ([0.95] * 6, False),
        ([0.95] * 7, False),
        ([0.95] * 8, True),
        ([1.0] * 6, True),
        ([0.95, 1.05] * 3, False),
        ([0.95, 1.05] * 4, True),
        ([1.0, 1.0, 1.0, *[0.95] * 9], False),
        ([1.0, *[0.95] * 11], True),
        ([1.0, 1.0, 1.0, *[0.95] * 17], True),
    ],
)
def test_a_comparison_ends_when_more_pairs_would_not_change_the_verdict(ratios, decided):
    assert is_decided(compared(ratios)) == decided


def test_other_load_in_some_turns_does_not_move_the_ratio():
    disturbed = compared([1.05, 1.3, 1.05, 1.05] * 6, per_pair=4)
    assert comparison_ratio(disturbed).high == pytest.approx(1.05)


def test_the_builders_comparison_can_be_judged():
    assert verdict(a_comparison()) in ("faster", "slower", "no difference")


def test_the_drop_is_paired():
    rng = np.random.default_rng(5)
    baseline = (rng.random(2000) < 0.9).astype(float)
    candidate = baseline.copy()
    candidate[:20] = 0.0
    interval = paired_drop_interval(baseline, candidate)
    assert interval.value == (baseline - candidate).mean()
    unpaired = 1.96 * math.sqrt(2 * 0.9 * 0.1 / 2000)
    assert 0 < interval.low < interval.value < interval.high
    assert interval.high - interval.low < unpaired


def test_a_drop_of_nothing_has_no_width():
    assert paired_drop_interval([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]) == Interval(0.0, 0.0, 0.0)


def test_scores_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="same samples"):
        paired_drop_interval([1.0, 0.0], [1.0])

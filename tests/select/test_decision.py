"""The decision: smallest within budget, the limits that bind, the Pareto front, and the A/B's veto."""

import math
import random

import msgspec
import pytest
from builders import (
    a_baseline,
    a_budget,
    a_choice,
    a_comparison,
    a_derived_trial,
    a_failed_trial,
    a_recipe,
    a_trial,
    a_trial_with_a_float_prefix,
)

from edgeopt.records.low_rank import Factorization
from edgeopt.records.recipe import LowRank, Sparsify
from edgeopt.records.trial import Measured
from edgeopt.select.decision import contenders

A_RANDOM_BUILD = 8  # trials; brute force over them is instant, and each limit is kept by some and missed by others


def binding(*trials, **limits):
    return a_choice(trials, a_budget(**limits)).binding


def test_the_smallest_trial_that_keeps_every_limit_wins():
    choice = a_choice((a_baseline(), a_trial(1, size_bytes=900), a_trial(2, size_bytes=800), a_trial(3, score=0.5)))
    assert choice.winner == 2
    assert choice.infeasible is None


def test_the_baseline_wins_if_nothing_smaller_keeps_the_limits():
    assert a_choice((a_baseline(), a_trial(1, score=0.5))).winner == 0


def test_equal_sizes_are_decided_by_latency_and_then_by_score():
    slow, fast, better = (
        a_trial(1, latency_ms=0.3, score=0.912),
        a_trial(2, latency_ms=0.2, score=0.910),
        a_trial(3, latency_ms=0.2, score=0.911),
    )
    assert a_choice((a_baseline(), slow, fast)).winner == 2
    assert a_choice((a_baseline(), slow, fast, better)).winner == 3


def test_the_download_decides_if_the_budget_says_so():
    trials = (
        a_baseline(),
        a_trial(1, size_bytes=800, download_bytes=700),
        a_trial(2, size_bytes=900, download_bytes=300),
    )
    assert a_choice(trials).winner == 1
    assert a_choice(trials, a_budget(size_metric="download")).winner == 2


def test_a_file_that_only_the_runtime_makes_too_large_loses_and_the_order_of_files_stays():
    trials = (a_baseline(size_bytes=5000), a_trial(1, size_bytes=900), a_trial(2, size_bytes=1200))
    limits = a_budget(max_size_bytes=5000, runtime_size_bytes=4000)
    assert a_choice(trials, limits).winner == 1
    tight = a_choice(trials, msgspec.structs.replace(limits, max_size_bytes=4800))
    assert (tight.winner, tight.binding) == (None, ("size",))
    assert tight.verdicts[1].misses[0].found == 4900
    assert "size limit of 0.0049 MB (instead of 0.0048 MB)" in tight.infeasible.advice
    assert a_choice(trials, a_budget(max_size_bytes=4800)).winner == 1


def test_the_deflated_file_counts_with_the_runtime_if_the_download_decides():
    trials = (a_baseline(), a_trial(1, size_bytes=900, download_bytes=300))
    for allowed, misses in ((4300, 0), (4299, 1)):
        budget = a_budget(max_size_bytes=allowed, runtime_size_bytes=4000, size_metric="download")
        assert len(a_choice(trials, budget).verdicts[1].misses) == misses


def test_a_quicker_file_of_about_the_size_needs_as_few_bytes_with_a_runtime_as_without():
    trials = (a_baseline(), a_trial(1, size_bytes=1000), a_trial(2, size_bytes=1200, latency_ms=0.2, time_ratio=0.2))
    for runtime in (None, 1_000_000):
        assert a_choice(trials, a_budget(runtime_size_bytes=runtime)).winner == 1


def test_a_low_rank_trial_slower_than_its_parent_loses_to_it_and_a_sparse_one_need_not_be_faster():
    low = LowRank(layers={"fc.weight": Factorization(rank=8, form="pointwise")})
    zeros = Sparsify(method="magnitude", ratio=0.5, scope="global", schedule="cubic")
    for step, time_ratio, winner in ((low, 1.2, 1), (low, 0.8, 2), (zeros, 1.2, 2)):
        variant = a_derived_trial(2, step, time_ratio=time_ratio, size_bytes=700)
        assert a_choice((a_baseline(), a_trial(1, size_bytes=900), variant)).winner == winner
    lost = a_derived_trial(2, low, time_ratio=1.2, size_bytes=700)  # better than nothing if its parent misses a limit
    assert a_choice((a_baseline(), a_trial(1, size_bytes=900), lost), a_budget(max_size_bytes=800)).winner == 2


def test_a_failed_trial_cannot_win_and_is_kept_in_the_choice():
    choice = a_choice((a_baseline(), a_failed_trial(1)))
    assert choice.winner == 0
    assert [verdict.trial for verdict in choice.verdicts] == [0]
    assert len(choice.trials) == 2


@pytest.mark.parametrize("seed", range(5))
def test_a_random_build_is_decided_as_by_brute_force(seed):
    rng = random.Random(seed)
    trials = (
        a_baseline(),
        *(
            a_trial(
                number,
                size_bytes=rng.randrange(100, 3000),
                latency_ms=rng.uniform(0.1, 1.4),
                memory_bytes=rng.choice([None, 3_000_000, 20_000_000]),
                score=rng.uniform(0.89, 0.92),
            )
            for number in range(1, A_RANDOM_BUILD)
        ),
    )
    choice = a_choice(trials)
    keeping = [
        (trial.outcome.artifact.size_bytes, trial.number)
        for trial in trials
        if isinstance(trial.outcome, Measured)
        and trial.outcome.measurement.memory is not None
        and trial.outcome.measurement.memory.peak_bytes <= 10_000_000
        and trial.outcome.artifact.size_bytes <= 2_000_000
        and trial.outcome.score.drop <= 0.01
        and not any(miss.limit == "latency" for miss in choice.verdicts[trial.number].misses)
    ]
    assert choice.winner == min(keeping)[1]


class TestTheComparisonWithTheBaseline:
    def slow_and_small(self, *, int8):
        return a_trial(1, size_bytes=500, time_ratio=1.3, recipe=a_recipe(pruned=True, int8=int8))

    def test_a_slower_trial_cannot_win_while_the_baseline_keeps_the_limits(self):
        choice = a_choice((a_baseline(), self.slow_and_small(int8=False)))
        assert choice.winner == 0
        assert not choice.verdicts[1].pays
        assert choice.verdicts[1].misses == ()

    def test_it_can_win_if_the_baseline_does_not_keep_them(self):
        choice = a_choice((a_baseline(size_bytes=3_000_000), self.slow_and_small(int8=False)))
        assert choice.winner == 1

    @pytest.mark.parametrize(("proven", "winner"), [(True, 2), (False, 1)])
    def test_int8_slower_than_its_float_counterpart_loses_to_it_on_the_target_itself(self, proven, winner):
        int8, counterpart = (a_trial(number, size_bytes=size, recipe=a_recipe(pruned=True, int8=number == 1))
                      for number, size in ((1, 400), (2, 900)))  # fmt: skip
        slower = msgspec.structs.replace(int8.outcome, against_float=a_comparison(time_ratio=1.3))
        int8 = msgspec.structs.replace(int8, outcome=slower)
        assert a_choice((a_baseline(), int8, counterpart), proven_on_target=proven).winner == winner

    def test_int8_slower_than_its_float_counterpart_wins_if_the_counterpart_is_too_large(self):
        int8 = a_trial(1, size_bytes=400, recipe=a_recipe(pruned=True, int8=True))
        counterpart = a_trial(2, size_bytes=900, recipe=a_recipe(pruned=True))
        slower = msgspec.structs.replace(int8.outcome, against_float=a_comparison(time_ratio=1.3))
        trials = (a_baseline(), msgspec.structs.replace(int8, outcome=slower), counterpart)
        assert a_choice(trials, a_budget(max_size_bytes=500)).winner == 1

    @pytest.mark.parametrize(
        ("time_ratio", "size_bytes", "limits", "winner"),
        [
            (0.8, 905, {}, 2),
            (0.8, 1200, {}, 1),
            (1.2, 890, {}, 2),
            (1.0, 905, {}, 1),
            (0.8, 905, {"max_size_bytes": 902}, 1),
        ],
        ids=["faster by more than larger", "larger by more", "smaller", "no faster", "too large"],
    )
    def test_a_float_prefix_replaces_full_int8_if_it_is_faster_by_more_than_it_is_larger(
        self, time_ratio, size_bytes, limits, winner
    ):
        full_int8 = a_trial(1, size_bytes=900, recipe=a_recipe(int8=True), drop=0.0)
        prefixed = a_trial_with_a_float_prefix(2, time_ratio=time_ratio, size_bytes=size_bytes)
        assert a_choice((a_baseline(), full_int8, prefixed), a_budget(**limits)).winner == winner

    def test_full_int8_is_not_replaced_by_a_float_prefix_that_is_slower_than_the_baseline(self):
        full_int8 = a_trial(1, size_bytes=900, recipe=a_recipe(int8=True), drop=0.0)
        prefixed = a_trial_with_a_float_prefix(2)
        slower = msgspec.structs.replace(prefixed.outcome, against_baseline=a_comparison(time_ratio=1.2))
        assert a_choice((a_baseline(), full_int8, msgspec.structs.replace(prefixed, outcome=slower))).winner == 1

    def test_on_the_target_itself_slower_int8_cannot_win_either(self):
        assert a_choice((a_baseline(), self.slow_and_small(int8=True))).winner == 0

    def test_on_a_stand_in_slower_int8_may_win_but_slower_float_may_not(self):
        def winner(*, int8):
            return a_choice((a_baseline(), self.slow_and_small(int8=int8)), proven_on_target=False).winner

        assert winner(int8=True) == 1
        assert winner(int8=False) == 0

    def test_a_difference_inside_the_noise_bars_nothing(self):
        assert a_choice((a_baseline(), a_trial(1, time_ratio=1.001))).winner == 1


class TestBindingLimits:
    def test_latency_if_a_smaller_trial_misses_only_latency(self):
        assert binding(a_baseline(), a_trial(1, latency_ms=1.2)) == ("latency",)

    def test_memory_if_a_smaller_trial_misses_only_memory(self):
        assert binding(a_baseline(), a_trial(1, memory_bytes=20_000_000)) == ("memory",)

    def test_score_if_a_smaller_trial_misses_only_the_score(self):
        assert binding(a_baseline(), a_trial(1, score=0.8)) == ("score",)

    def test_size_if_nothing_smaller_exists_and_it_has_the_least_room(self):
        trials = (a_baseline(), a_trial(1, size_bytes=900, drop=0.0))
        assert binding(*trials, max_size_bytes=950) == ("size",)

    def test_each_limit_that_would_let_a_smaller_trial_win_if_waived(self):
        trials = (
            a_baseline(),
            a_trial(1),
            a_trial(2, size_bytes=500, score=0.8),
            a_trial(3, size_bytes=600, latency_ms=2),
        )
        assert binding(*trials) == ("latency", "score")

    def test_all_limits_that_the_next_smaller_trial_misses_if_no_trial_misses_only_one(self):
        both = a_trial(1, size_bytes=500, score=0.8, latency_ms=1.2)
        worse = a_trial(2, size_bytes=300, score=0.8, latency_ms=1.2, memory_bytes=20_000_000)
        assert binding(a_baseline(), both, worse) == ("latency", "score")

    def test_none_if_every_limit_is_waived(self):
        waived = {"max_latency_ms": None, "max_peak_memory_bytes": None, "max_size_bytes": None, "max_score_drop": None}
        assert binding(a_baseline(), **waived) == ()


class TestTheParetoFront:
    def test_it_leaves_out_trials_that_another_beats_in_every_metric(self):
        good = a_trial(1, size_bytes=500, latency_ms=0.2)
        beaten = a_trial(2, size_bytes=600, latency_ms=0.3)
        smaller_but_slower = a_trial(3, size_bytes=400, latency_ms=0.4)
        assert a_choice((good, beaten, smaller_but_slower)).pareto_front == (1, 3)

    def test_a_trial_without_memory_or_score_is_beaten_by_an_equal_one_that_has_them(self):
        trials = (a_trial(1), a_trial(2, memory_bytes=None), a_trial(3, score=math.nan))
        assert a_choice(trials).pareto_front == (1,)

    def test_equal_trials_are_both_on_it(self):
        assert a_choice((a_trial(1), a_trial(2))).pareto_front == (1, 2)


def test_contenders_are_the_winner_and_smaller_trials_that_lost_an_ab():
    slower, larger = a_trial(1, size_bytes=400, time_ratio=1.3), a_trial(2, size_bytes=950, time_ratio=1.3)
    trials = (a_baseline(), slower, larger, a_trial(3, size_bytes=900), a_trial(4, size_bytes=300, score=0.5))
    assert a_choice(trials).winner == 3
    assert contenders(trials, a_budget(), proven_on_target=True) == [3, 1]


def test_there_are_no_contenders_if_nothing_keeps_the_limits():
    trials, budget = (a_baseline(), a_trial(1)), a_budget(max_size_bytes=1)
    assert a_choice(trials, budget).winner is None
    assert contenders(trials, budget, proven_on_target=True) == []

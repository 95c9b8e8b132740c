"""The comparisons that decide: A/Bs of the trials that may win, until none is left, and what may replace a slow one."""

from __future__ import annotations

from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.artifacts.comparisons import with_full_int8
from edgeopt.pipeline.boundary import as_failed
from edgeopt.pipeline.search.float_fallbacks import (
    fewer_bits_variant,
    float16_variant,
    float_prefix_variant,
    may_fall_back,
)
from edgeopt.pipeline.search.trial_runner import TrialRunner
from edgeopt.records.trial import Measured, Trial
from edgeopt.select.decision import contenders
from edgeopt.select.limits import replaces


def compare_contenders(runner: TrialRunner, *, may_add: bool) -> None:
    """Compare every trial that may win until none is left; fallbacks of the winner may win too.

    A trial that turns out slower is replaced by the next one. An int8 file that is slower than the baseline is also
    compared with its float counterpart, because the layers that became slower are reported.

    Args:
        runner: Holds the trials.
        may_add: Whether fallbacks may be made; after an early end of the search nothing new is.
    """
    build = runner.build
    failed: set[int] = set()
    with_fallbacks: set[int] = set()
    on_target = build.device_info.kind == "measured"
    while True:
        numbers = contenders(tuple(runner.trials), build.budget, proven_on_target=on_target)
        to_compare = next((one for one in numbers if one not in failed and runner.needs_comparison(one)), None)
        with build.clock.stage("measure"):
            if to_compare is not None and not can_compare(runner, to_compare):
                failed.add(to_compare)
            winner = next((one for one in numbers[:1] if not runner.needs_comparison(one)), None)
            if may_add and winner is not None and winner not in with_fallbacks:
                with_fallbacks.add(winner)
                try_fallbacks(runner, runner.trials.by_number(winner))
                try_fewer_bits(runner, runner.trials.by_number(winner))
            elif to_compare is None:
                return


def can_compare(runner: TrialRunner, number: int) -> bool:
    """Compare a trial with the baseline; tell whether that went well. If it did not, the trial says why."""
    try:
        runner.compare(number)
    except EdgeoptError as error:
        runner.add_note(number, f"a comparison failed: {as_failed(error).reason}")
        return False
    return True


def try_fallbacks(runner: TrialRunner, trial: Trial) -> None:
    """Measure the variants that may replace an int8 trial; float16 only if no int8 variant pays."""
    if not isinstance(trial.outcome, Measured) or not may_fall_back(runner, trial):
        return
    variant = float_prefix_variant(runner, trial)
    if variant is not None:
        measured = runner.measure(variant)
        outcome = with_full_int8(runner.evaluator, measured, trial)
        if outcome is not None:
            runner.rewrite(measured, outcome)
            if not runner.missed_limits(outcome) and replaces(outcome, trial.outcome, runner.build.budget):
                return  # its own comparison decides what follows
    variant = float16_variant(runner, trial)
    if variant is not None:
        runner.measure(variant)


def try_fewer_bits(runner: TrialRunner, trial: Trial) -> None:
    """Measure the variant of an int8 trial whose weights have bits of their own, if it is smaller."""
    variant = fewer_bits_variant(runner, trial)
    if variant is not None:
        runner.measure(variant)

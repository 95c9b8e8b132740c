"""Which files are measured, the A/Bs that decide between those that may win, and what may replace a slow one."""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt.device.pool import DevicePool
from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.artifacts.comparisons import with_full_int8
from edgeopt.pipeline.boundary import as_failed
from edgeopt.pipeline.search.candidate import Variant
from edgeopt.pipeline.search.trial_runner import TrialRunner
from edgeopt.pipeline.search.variants.float_fallbacks import (
    fewer_bits_variant,
    float16_variant,
    float_prefix_variant,
    may_fall_back,
)
from edgeopt.records.budget import Budget
from edgeopt.records.recipe import DropUnseenRows, Recipe
from edgeopt.records.trial import Failed, Measured, Trial
from edgeopt.select.decision import contenders
from edgeopt.select.limits import latency_interval, measured_size, replaces
from edgeopt.select.preference import NEAR_SIZE_RATIO

_CLEARLY_QUICKER_RATIO = 0.9
"""Of the baseline's time: then no float file of the network is needed as a fallback."""


def measure_variants(runner: TrialRunner, variants: Sequence[Variant]) -> tuple[list[Trial], list[Variant]]:
    """Measure the files of a network; return their trials, and the files that were not measured.

    A quick build leaves out a file that could hardly win: a smaller one of the same network keeps every limit and is
    clearly quicker than the baseline. Of the original it measures every int8 file, of a pruned network the smallest one
    first. Float files that an int8 file has to be quicker than are measured wherever that decides.
    """
    build = runner.build
    measures_all = isinstance(build.device, DevicePool) or not build.effort.is_first_look
    if measures_all or build.budget.prefer != "size":
        return [runner.measure(variant) for variant in variants], []
    trials: list[Trial] = []
    spares: list[Variant] = []
    for variant in sorted(variants, key=lambda one: _place(one, build.budget)):
        if any(_outdoes(runner, trial, variant) for trial in trials):
            spares.append(variant)
        else:
            trials.append(runner.measure(variant))
    runner.spares += spares
    return trials, spares


def measure_spares(runner: TrialRunner, network: Recipe) -> None:
    """Measure the files of a network that were left out."""
    own = [spare for spare in runner.spares if spare.recipe.is_of_network(network)]
    for spare in own:
        runner.spares.remove(spare)
        runner.measure(spare)


def _place(variant: Variant, budget: Budget) -> tuple[bool, int]:
    """Return a key that sorts files of a network: what failed first; all int8 files of the original before float."""
    if isinstance(variant.made, Failed):
        return False, 0
    if variant.recipe.is_original:
        return variant.recipe.precision != "int8", 0
    return False, measured_size(variant.made.artifact, budget)


def _outdoes(runner: TrialRunner, trial: Trial, variant: Variant) -> bool:
    """Tell whether a file need not be measured, because another one of its network is better in every respect."""
    outcome, baseline, budget = trial.outcome, runner.trials[0].outcome, runner.build.budget
    if isinstance(variant.made, Failed) or not isinstance(outcome, Measured) or not isinstance(baseline, Measured):
        return False
    if variant.recipe.is_original and variant.recipe.precision == "int8":
        return False
    if variant.recipe.precision == "fp32" and runner.build.device_info.kind == "measured":
        return False  # int8 ships there if it is no slower than float
    if _drops_rows(trial.recipe) and not _drops_rows(variant.recipe):
        return False  # that other file takes any word
    size, other = (measured_size(one, budget) for one in (outcome.artifact, variant.made.artifact))
    time_ms, before_ms = (latency_interval(one.measurement, 50).value for one in (outcome, baseline))
    is_clear = size * NEAR_SIZE_RATIO < other and time_ms < _CLEARLY_QUICKER_RATIO * before_ms
    return is_clear and not runner.missed_limits(outcome)


def _drops_rows(recipe: Recipe) -> bool:
    return any(isinstance(step, DropUnseenRows) for step in recipe.graph_steps)


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
    while True:
        numbers = _contenders(runner)
        to_compare = next((one for one in numbers if one not in failed and runner.needs_comparison(one)), None)
        with build.clock.stage("measure"):
            if to_compare is not None and not can_compare(runner, to_compare):
                failed.add(to_compare)
            if to_compare is not None and to_compare not in _contenders(runner):
                measure_spares(runner, runner.trials.by_number(to_compare).recipe)
            winner = next((one for one in numbers[:1] if not runner.needs_comparison(one)), None)
            if may_add and winner is not None and winner not in with_fallbacks:
                with_fallbacks.add(winner)
                try_fallbacks(runner, runner.trials.by_number(winner))
                try_fewer_bits(runner, runner.trials.by_number(winner))
            elif to_compare is None:
                return


def _contenders(runner: TrialRunner) -> list[int]:
    on_target = runner.build.device_info.kind == "measured"
    return list(contenders(tuple(runner.trials), runner.build.budget, proven_on_target=on_target))


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

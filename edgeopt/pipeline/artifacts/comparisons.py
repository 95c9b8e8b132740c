"""Interleaved A/Bs of a trial with other trials: the baseline, its float counterpart, the network it was made of.

Each function takes a trial's outcome and returns it with the comparison added.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.artifacts.evaluator import Evaluator
from edgeopt.pipeline.boundary import as_failed
from edgeopt.pipeline.context import Build
from edgeopt.records.recipe import Recipe, RefinementStep
from edgeopt.records.trial import AgainstTrial, Measured, Trial
from edgeopt.select.limits import find_float_counterpart
from edgeopt.statistics import verdict


def measured_counterpart(build: Build, trial: Trial, trials: Sequence[Trial]) -> Measured | None:
    """Return the outcome of an int8 trial's float counterpart; None on a stand-in, where it would decide nothing."""
    if build.device_info.kind != "measured":
        return None
    counterpart = find_float_counterpart(trial, trials)
    return counterpart.outcome if counterpart is not None and isinstance(counterpart.outcome, Measured) else None


def needs_comparison(build: Build, trial: Trial, trials: Sequence[Trial]) -> bool:
    """Tell whether a trial still has to be compared with the baseline or with its float counterpart."""
    assert isinstance(trial.outcome, Measured)
    if trial.number == 0:
        return False  # the baseline
    counterpart = measured_counterpart(build, trial, trials)
    return trial.outcome.against_baseline is None or (counterpart is not None and trial.outcome.against_float is None)


def with_baseline(evaluator: Evaluator, outcome: Measured) -> Measured:
    """Return an outcome with its A/B against the baseline."""
    evaluator.build.progress("compare", f"{outcome.artifact.size_bytes / 1e3:.0f} kB with the baseline")
    return msgspec.structs.replace(outcome, against_baseline=evaluator.comparison(outcome.artifact.sha256))


def with_float_counterpart(evaluator: Evaluator, number: int, outcome: Measured, counterpart: Measured) -> Measured:
    """Return an int8 trial's outcome with its A/B against its float counterpart, and the layers that became slower.

    Args:
        evaluator: Compares files.
        number: Of the trial.
        outcome: Of the trial.
        counterpart: The outcome of the same network in float32.
    """
    evaluator.build.progress("compare", f"trial {number} with its float32 counterpart")
    files = outcome.artifact.sha256, counterpart.artifact.sha256
    comparison = evaluator.comparison(*files)
    changes = evaluator.changes(*files) if verdict(comparison) == "slower" else ()
    return msgspec.structs.replace(outcome, against_float=comparison, changes_against_float=changes)


def parent_of(build: Build, recipe: Recipe, trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of the network that a refined one was made of, in the same precision."""
    if not any(isinstance(step, RefinementStep) for step in recipe.torch_steps):
        return None
    found = []
    for trial in trials:
        other = trial.recipe
        key = build.keys.network(other.torch_steps, other.parent) if other.torch_steps else None
        same = key == recipe.parent and other.graph_steps and other.precision == recipe.precision
        if same and isinstance(trial.outcome, Measured):
            found.append(trial)
    return next((trial for trial in found if trial.recipe.graph_steps == recipe.graph_steps), (*found, None)[0])


def with_parent(evaluator: Evaluator, recipe: Recipe, outcome: Measured, trials: Sequence[Trial]) -> Measured:
    """Return an outcome with its A/B against the network it was made of: what a refinement bought.

    If that fails, a note says so: the file and its measurement are good without it.

    Raises:
        WorkspaceError, DeviceLostError: nothing can go on; the same command repeats the trial.
    """
    build = evaluator.build
    parent = parent_of(build, recipe, trials)
    if parent is None or not isinstance(parent.outcome, Measured):
        return outcome
    build.progress("compare", f"with trial {parent.number}, which it was made of")
    try:
        comparison = evaluator.comparison(outcome.artifact.sha256, parent.outcome.artifact.sha256)
    except EdgeoptError as error:
        note = (
            f"not compared with trial {parent.number}, which it was made of ({as_failed(error).reason}); run the same "
            "command to try again"
        )
        build.progress("compare", note)
        artifact = msgspec.structs.replace(outcome.artifact, notes=(*outcome.artifact.notes, note))
        return msgspec.structs.replace(outcome, artifact=artifact)
    return msgspec.structs.replace(outcome, against_parent=AgainstTrial(trial=parent.number, comparison=comparison))


def with_full_int8(evaluator: Evaluator, trial: Trial, full: Trial) -> Measured | None:
    """Return the outcome of a trial with a float prefix, with its A/B against the same network in int8 throughout.

    Args:
        evaluator: Compares files.
        trial: Whose first layers are in float.
        full: In int8 from the first layer on.

    Returns:
        None if the trial was not measured, or the comparison failed.
    """
    if not isinstance(trial.outcome, Measured) or not isinstance(full.outcome, Measured):
        return None
    build = evaluator.build
    build.progress("compare", f"trial {trial.number} with trial {full.number}, which is int8 from the first layer on")
    try:
        comparison = evaluator.comparison(trial.outcome.artifact.sha256, full.outcome.artifact.sha256)
    except EdgeoptError as error:
        build.progress("compare", f"trial {trial.number} was not compared: {as_failed(error).reason}")
        return None
    against = AgainstTrial(trial=full.number, comparison=comparison)
    return msgspec.structs.replace(trial.outcome, against_full_int8=against)

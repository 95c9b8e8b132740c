"""The winner's drop corrected for the choice among many files, for the report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.artifacts.evaluator import Evaluator, FileScore
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import ScoredArtifact, Variant
from edgeopt.records.choice import Choice, ExpectedDrop
from edgeopt.records.trial import Artifact, Trial
from edgeopt.scoring.drop import worsening
from edgeopt.scoring.optimism import ScoredFile, estimate_optimism
from edgeopt.select.limits import judged_drop, measured_size
from edgeopt.tasks.given.onnx_file import OnnxTask


def with_expected_drop(build: Build, evaluator: Evaluator, choice: Choice, spares: Sequence[Variant] = ()) -> Choice:
    """Return a choice with the drop that its winner is expected to have on other data.

    Args:
        build: The build.
        evaluator: Scores its files.
        choice: What won.
        spares: Files that were not measured, but could have won with other samples.

    Returns:
        The choice. It stays as it is if there is no limit on the drop, the baseline won or another order than that of
        size was asked for, the samples that select calibrate int8 too, or the score cannot be computed for draws.
    """
    limit, task = build.budget.max_score_drop, build.data.task
    if choice.winner in (None, 0) or limit is None or build.data.scores_rows or build.budget.prefer != "size":
        return choice
    if isinstance(task, OnnxTask) and task.split.is_shared:
        return choice  # int8 is fitted to these samples: they say nothing of others
    try:
        return run_step("expected drop", _add_expected_drop, build, evaluator, choice, limit, spares)
    except EdgeoptError as error:
        build.progress("note", f"no drop on other data is estimated: {as_failed(error).reason}")
        return choice


def _add_expected_drop(
    build: Build, evaluator: Evaluator, choice: Choice, limit: float, spares: Sequence[Variant]
) -> Choice:
    base = _score_of(evaluator, choice.measured(0).artifact)
    kept = base.mean_of if base.mean_of is not None else base.rows
    numbers = [trial.number for trial in choice.trials if _misses_only_the_drop(choice, trial, limit)]
    rivals = [ScoredArtifact(one.artifact, one.score) for one in map(choice.measured, numbers)]
    rivals += [spare.made for spare in spares if isinstance(spare.made, ScoredArtifact)]
    files = [file for rival in rivals if (file := _scored_file(build, evaluator, rival, base)) is not None]
    assert choice.winner is not None
    score = choice.measured(choice.winner).score
    if kept is None or score.drop_ci95 is None or len(files) < 2:
        return choice
    low, high = score.drop_ci95
    if low == high:  # no sample changed: the spread over these says nothing of others
        return choice
    optimism = estimate_optimism(files, limit, len(kept), build.seed)  # samples that do not count are not kept
    expected = ExpectedDrop(drop=score.drop + optimism, drop_ci95=(low + optimism, high + optimism), files=len(files))
    return msgspec.structs.replace(choice, expected=expected)


def _misses_only_the_drop(choice: Choice, trial: Trial, limit: float) -> bool:
    """Tell whether a trial could have won with other samples."""
    verdict = next((one for one in choice.verdicts if one.trial == trial.number), None)
    return (
        verdict is not None
        and verdict.pays
        and all(miss.limit == "score" and miss.allowed == limit for miss in verdict.misses)
    )


def _score_of(evaluator: Evaluator, artifact: Artifact) -> FileScore:
    data = evaluator.build.data
    return evaluator.evaluate(artifact.sha256, data.eval_file, data.targets)


def _scored_file(build: Build, evaluator: Evaluator, file: ScoredArtifact, base: FileScore) -> ScoredFile | None:
    """Return what a file loses on draws of the samples; None if that cannot be computed from what is kept."""
    artifact, score = file
    found = _score_of(evaluator, artifact)
    if score.drop_ci95 is None:
        return None
    direction = build.data.score_direction
    drop_of: Callable[[NDArray[np.int64]], float]
    if base.mean_of is not None and found.mean_of is not None and base.mean_of.shape == found.mean_of.shape:
        drop_of = functools.partial(_mean_drop, worsening(1.0, 0.0, direction) * (base.mean_of - found.mean_of))
    elif base.rows is not None and found.rows is not None and base.rows.shape == found.rows.shape:
        drop_of = functools.partial(_summed_drop, build, base.rows, found.rows)
    else:
        return None
    size = measured_size(artifact, build.budget)
    margin = judged_drop(score, build.budget) - score.drop
    return ScoredFile(size_bytes=size, drop_of=drop_of, drop=score.drop, margin=margin)


def _mean_drop(differences: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    return float(counts @ differences / counts.sum())


def _summed_drop(
    build: Build, before: NDArray[np.float64], after: NDArray[np.float64], counts: NDArray[np.int64]
) -> float:
    first, second = (build.data.score_statistics(counts @ rows) for rows in (before, after))
    return worsening(first, second, build.data.score_direction)

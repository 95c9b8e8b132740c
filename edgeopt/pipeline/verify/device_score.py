"""A bundle's score on a device.

In: a bundle and an evaluation set. Out: a ``DeviceScore``, from the outputs of the whole set on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.bench.outputs import run_arrays
from edgeopt.bench.run_target import RunTarget
from edgeopt.bundle.manifest import Manifest, TensorInfo
from edgeopt.errors import TaskError
from edgeopt.graph.given.files import hash_given, one_file, read_given
from edgeopt.records.base import Record
from edgeopt.records.scoring import ScoreKind
from edgeopt.records.trial import Score
from edgeopt.report.document import Document, TrialPart
from edgeopt.report.parts import Span
from edgeopt.scoring.drop import is_mean, rows_interval, sums_interval, worsening
from edgeopt.statistics import Interval, mean_interval
from edgeopt.tasks.given.onnx_file import OnnxTask

if TYPE_CHECKING:
    from edgeopt.pipeline.evaluation import EvaluationSet

_STAGE = "evaluate"


class DeviceScore(Record, frozen=True, kw_only=True):
    """The score of a bundle's model on a device."""

    task: str
    """As the user named it."""
    score: Score
    """The drop is from the baseline's score in the build. Its interval is the build's, shifted by the change of the
    score, because a bundle has no baseline to run on the same samples."""
    ci95: Span | None
    """Of the score; None if it is neither a mean of scores of single samples nor computed from numbers of them."""
    built: float
    """The score that the build measured on its own device."""


def check_evaluation_set(evaluation: EvaluationSet, manifest: Manifest, document: Document) -> None:
    """Check that a bundle's model can be scored on an evaluation set, and compared with the score of the build.

    Raises:
        TaskError: the inputs are not the model's, or this is not the selection set of the build.
    """
    spec = evaluation.task.spec
    advice = "Give the task and the data that the bundle was built with."
    check_set_inputs(evaluation, manifest.inputs, "the bundle's model", advice)
    build_samples = document.winner.score_samples if document.winner else None
    if build_samples is not None and build_samples != evaluation.samples:
        raise TaskError(
            f"{spec} has {evaluation.samples:,} evaluation samples, but the build had {build_samples:,}: scores of "
            f"different sets can't be compared. {advice}"
        )
    by_agreement = not evaluation.targets and evaluation.task.kind == "onnx"
    if by_agreement and document.given_sha256 != hash_given(read_given(Path(spec))):
        raise TaskError(
            f"without labels the score is the agreement with the file that the bundle was built from, and {spec} is a "
            f"different file. {advice}"
        )


def check_set_inputs(evaluation: EvaluationSet, expected: Sequence[TensorInfo], model: str, advice: str) -> None:
    """Check that a model takes the inputs of an evaluation set.

    Args:
        evaluation: The set.
        expected: Inputs of the model.
        model: What messages call it.
        advice: What to do if it does not.

    Raises:
        TaskError: it does not.
    """
    spec, names = evaluation.task.spec, evaluation.task.input_names
    model_names = [info.name for info in expected]
    if set(names) != set(model_names):
        raise TaskError(
            f"{spec} has the inputs {', '.join(names)}, but {model} takes {', '.join(model_names)}. {advice}"
        )
    for batch in evaluation.inputs:
        for info in expected:
            array = batch[info.name]
            if not _fits(info, array):
                raise TaskError(
                    f"{spec}: input '{info.name}' has shape {array.shape} and type {array.dtype}, but {model} takes "
                    f"{info.shape} of {info.dtype}. {advice}"
                )


def _fits(info: TensorInfo, array: Any) -> bool:
    same_sizes = len(info.shape) == array.ndim and all(
        isinstance(expected, str) or expected == size for expected, size in zip(info.shape, array.shape, strict=True)
    )
    return bool(same_sizes and array.dtype.name == info.dtype)


def score_on_device(
    bundle: Path,
    manifest: Manifest,
    winner: TrialPart,
    evaluation: EvaluationSet,
    run_target: RunTarget,
    kind: ScoreKind | None,
) -> DeviceScore:
    """Score a bundle's model on a device.

    Args:
        bundle: The folder.
        manifest: Its manifest.
        winner: The trial of its model, with the score of the build.
        evaluation: A set that passes ``check_evaluation_set``.
        run_target: Where the model runs.
        kind: What the score was in the build; None if the task scores itself, and for a bundle that doesn't say.

    Raises:
        DataError, TaskError: outputs and labels of a given file do not fit.
        TaskError: the task's score fails on the outputs.
        ProviderError, StepError, DeviceError: see ``edgeopt.bench.outputs.run_model``.
    """
    model, task = bundle / "model.onnx", evaluation.task
    targets = settle_targets(evaluation, model, run_target, kind)
    names = task.output_names if isinstance(task, OnnxTask) else [info.name for info in manifest.outputs]
    found = score_outputs(evaluation, model, run_target, targets, names)
    value, interval = found.value, score_interval(evaluation, found)
    built, built_drop = (math.nan if number is None else number for number in (winner.score, winner.score_drop))
    shift = worsening(built, value, evaluation.score_direction)
    span = winner.score_drop_ci95
    return DeviceScore(
        task=task.spec,
        score=Score(
            value=value,
            drop=built_drop + shift,
            drop_ci95=None if span is None else (span[0] + shift, span[1] + shift),
            samples=evaluation.samples,
            direction=evaluation.score_direction,
        ),
        ci95=None if interval is None else (interval.low, interval.high),
        built=built,
    )


class ScoredOutputs(NamedTuple):
    """A file's outputs on an evaluation set, and their score."""

    pairs: list[tuple[Any, Any]]
    """Outputs and targets of each batch."""
    value: float
    samples: NDArray[np.float64] | None
    """Scores of single samples; None if the task doesn't give any."""
    rows: NDArray[np.float64] | None
    """Numbers of each sample that the score is computed from; None if the task gives none."""


def score_outputs(
    evaluation: EvaluationSet, model: Path, run_target: RunTarget, targets: Sequence[Any], names: Sequence[str]
) -> ScoredOutputs:
    """Run a file over an evaluation set and score its outputs.

    Args:
        evaluation: The set.
        model: The file.
        run_target: Where it runs.
        targets: From ``settle_targets``.
        names: Of the outputs, in the task's order.

    Raises:
        DataError, TaskError, ProviderError, StepError, DeviceError: see ``score_on_device``.
    """
    outputs = run_arrays(model, evaluation.fed_inputs, replace(run_target, states=evaluation.states), _STAGE)
    pairs = evaluation.pairs(outputs, targets, names)
    return ScoredOutputs(
        pairs, evaluation.score(pairs), evaluation.sample_scores(pairs), evaluation.sample_statistics(pairs)
    )


def score_interval(evaluation: EvaluationSet, found: ScoredOutputs) -> Interval | None:
    """Return the 95 % interval of a score; None if it is neither a mean of scores of samples nor made of their rows."""
    if found.samples is not None and is_mean(found.value, found.samples):
        return mean_interval(found.samples)
    if found.rows is None:
        return None
    if evaluation.scores_rows:
        return rows_interval(found.rows, evaluation.score_rows)
    return sums_interval(found.rows, evaluation.score_statistics)


def settle_targets(
    evaluation: EvaluationSet, model: Path, run_target: RunTarget, kind: ScoreKind | None
) -> Sequence[Any]:
    """Return the targets of an evaluation set: without labels, outputs of the given file; and settle its score.

    Args:
        evaluation: The set.
        model: The file to score, whose samples have to be found in its outputs.
        run_target: Where it runs, and the given file too.
        kind: What the score is; None leaves it to the data.

    Raises:
        DataError, TaskError, ProviderError, StepError, DeviceError: see ``score_on_device``.
    """
    task, targets = evaluation.task, evaluation.targets
    if not isinstance(task, OnnxTask):
        return targets
    several_sizes = task.row_check_batches()
    found = run_arrays(model, several_sizes, run_target, _STAGE)
    task.keep_judged_outputs(task.settle_output_axes(several_sizes, found))
    run_target = replace(run_target, states=evaluation.states)
    task.score_kind = kind
    if kind is not None and targets:
        return targets
    path = Path(task.spec)
    with one_file(path, read_given(path)) as given:
        reference = run_arrays(given, evaluation.fed_inputs, run_target, _STAGE)
    evaluation.settle_score(reference)
    return targets or [pair[0] for pair in evaluation.pairs(reference, [None] * len(reference))]

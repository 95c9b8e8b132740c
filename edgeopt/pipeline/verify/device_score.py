"""A bundle's score on a device: the whole evaluation set run there, beside the score that the build found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.bench.requests import file_sha256
from edgeopt.bench.run_target import RunTarget
from edgeopt.bundle.manifest import Manifest, TensorInfo
from edgeopt.errors import TaskError
from edgeopt.records.base import Record
from edgeopt.records.trial import Score
from edgeopt.report.document import Document, Span, TrialPart
from edgeopt.statistics import mean_interval

if TYPE_CHECKING:
    from edgeopt.pipeline.evaluation import EvaluationSet

_STAGE = "evaluate"


class DeviceScore(Record, frozen=True, kw_only=True):
    """What a bundle's model scores on a device."""

    task: str
    """As it was named."""
    score: Score
    """Its drop is against the baseline as the build found it; the interval of that drop is the build's, moved by what
    the score moved, for a bundle holds no baseline to run on the same samples."""
    ci95: Span | None
    """Of the score; None where the task gives no score for each sample."""
    built: float
    """What the build found, on its device."""


def check_fits(evaluation: EvaluationSet, manifest: Manifest, document: Document) -> None:
    """See that an evaluation set is one that the bundle's model can be judged on.

    Raises:
        TaskError: its inputs are not the model's, or it is not the set that the build selected by.
    """
    spec = evaluation.task.spec
    advice = "Give the task, and the data, that the bundle was built with."
    given, wanted = evaluation.task.input_names, [info.name for info in manifest.inputs]
    if set(given) != set(wanted):
        raise TaskError(
            f"{spec} has the inputs {', '.join(given)}, and the bundle's model takes {', '.join(wanted)}. {advice}"
        )
    for batch in evaluation.inputs:
        for info in manifest.inputs:
            found = batch[info.name]
            if not _fits(info, found):
                raise TaskError(
                    f"{spec}: input '{info.name}' has shape {found.shape} and type {found.dtype}, and the bundle's "
                    f"model takes {info.shape} of {info.dtype}. {advice}"
                )
    built = document.winner.score_samples if document.winner else None
    if built is not None and built != evaluation.samples:
        raise TaskError(
            f"{spec} has {evaluation.samples:,} evaluation samples, and the build selected by {built:,}: scores of two "
            f"sets cannot be compared. {advice}"
        )
    by_agreement = not evaluation.targets and evaluation.task.kind == "onnx"
    if by_agreement and file_sha256(Path(spec), _STAGE) != document.baseline.sha256:
        raise TaskError(
            f"without labels the score is the agreement with the file that was built from, and {spec} is another. "
            f"{advice}"
        )


def _fits(info: TensorInfo, found: Any) -> bool:
    sizes = len(info.shape) == found.ndim and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(info.shape, found.shape, strict=True)
    )
    return bool(sizes and found.dtype.name == info.dtype)


def device_score(
    bundle: Path, manifest: Manifest, winner: TrialPart, evaluation: EvaluationSet, place: RunTarget
) -> DeviceScore:
    """Score a bundle's model on a device.

    Args:
        bundle: The folder.
        manifest: Its manifest.
        winner: What the build found of its model.
        evaluation: A set that ``check_fits``.
        place: Where the model runs.

    Raises:
        TaskError: the task's score fails on the outputs.
        ProviderError, StepError, DeviceError: see ``edgeopt.bench.outputs.run_model``.
    """
    names = [info.name for info in manifest.outputs]
    outputs = place.outputs(bundle / "model.onnx", evaluation.inputs, _STAGE)
    targets = evaluation.targets
    if not targets:
        reference = place.outputs(Path(evaluation.task.spec), evaluation.inputs, _STAGE)
        targets = [pair[0] for pair in evaluation.pairs(reference, [None] * len(reference), names)]
    pairs = evaluation.pairs(outputs, targets, names)
    value, samples = evaluation.score(pairs), evaluation.sample_scores(pairs)
    interval = None if samples is None else mean_interval(samples)
    built, drop = (math.nan if found is None else found for found in (winner.score, winner.score_drop))
    fell = built - value
    span = winner.score_drop_ci95
    return DeviceScore(
        task=evaluation.task.spec,
        score=Score(
            value=value,
            drop=drop + fell,
            drop_ci95=None if span is None else (span[0] + fell, span[1] + fell),
            samples=evaluation.samples,
        ),
        ci95=None if interval is None else (interval.low, interval.high),
        built=built,
    )

"""A shipped bundle verified again: hashes of its files, golden outputs on a device, limits measured anew.

In: a bundle, a device, a profile, and a task where the score is asked for. Out: findings, one a thing looked at.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeopt.bench.measure import measure
from edgeopt.bench.outputs import write_batches
from edgeopt.bench.run_target import RunTarget
from edgeopt.bundle.golden import Array, GoldenEntry, largest_difference, read_golden
from edgeopt.bundle.manifest import Manifest, changed_files, read_manifest
from edgeopt.errors import StepError
from edgeopt.graph.facts import facts
from edgeopt.pipeline.verify.device_score import DeviceScore, check_fits, device_score
from edgeopt.records.base import Record
from edgeopt.records.budget import Budget
from edgeopt.records.measurement import DeviceKind, Measurement
from edgeopt.report import words
from edgeopt.report.document import read_document
from edgeopt.report.words import Unit
from edgeopt.select.limits import LimitFinding as LimitFinding
from edgeopt.select.limits import device_findings, score_findings

if TYPE_CHECKING:
    from edgeopt.pipeline.evaluation import EvaluationSet

UNITS: dict[str, Unit] = {
    "latency": "ms",
    "throughput": "per_s",
    "memory": "bytes",
    "size": "bytes",
    "score": "score",
}


NOTES: dict[DeviceKind, str] = {
    "stand-in": "this machine only stands in for {target}: name the real one with --device",
    "emulated": "an emulated processor has no times and no memory to measure: those limits are not judged",
}


class CheckFinding(Record, frozen=True, kw_only=True):
    """One thing that was looked at."""

    kind: Literal["file", "golden", "score", "limit"]
    name: str
    """Of the file, the output, the task or the limit."""
    status: Literal["passed", "missed", "bad", "note"]
    """``bad`` is a bundle that is not what was built; ``note`` decides nothing."""
    text: str
    """For people: what was found."""
    found: float | None = None
    """The number that decides, unrounded; null where there is none, or where it is not finite."""
    allowed: float | None = None


class CheckResult(Record, frozen=True, kw_only=True):
    """All findings, and the measurement that the limits were judged by; ``edgeopt check --json`` prints it."""

    schema: Literal["edgeopt/check-1"] = "edgeopt/check-1"
    bundle: str
    """The folder, as it was given."""
    target: str
    device: str
    """URI."""
    status: Literal["passed", "missed", "bad"]
    findings: tuple[CheckFinding, ...]
    measurement: Measurement | None
    score: DeviceScore | None
    """null where no task was named."""


def check_files(bundle: Path, manifest: Manifest) -> list[CheckFinding]:
    """Compare every file with its hash, and see that the golden arrays are among them."""
    changed = changed_files(bundle, manifest)
    texts = dict.fromkeys(changed, "was changed")
    texts |= {name: "is missing" for name in changed if not (bundle / name).is_file()}
    texts |= {name: "was added" for name in changed if name not in manifest.files}
    texts |= {entry.file: "is not in the manifest" for entry in manifest.golden if entry.file not in manifest.files}
    bad = [CheckFinding(kind="file", name=name, status="bad", text=text) for name, text in sorted(texts.items())]
    whole = f"{len(manifest.files)} files have the hashes of the manifest"
    return bad or [CheckFinding(kind="file", name="all", status="passed", text=whole)]


def check_bundle(
    bundle: Path, place: RunTarget, *, progress: Callable[[str], None], evaluation: EvaluationSet | None = None
) -> CheckResult:
    """Verify a bundle. A bundle whose files are not what was built is not run.

    Args:
        bundle: A folder that ``edgeopt build`` wrote.
        place: Where the model runs.
        progress: Is told in a few words what happens now.
        evaluation: What the score is measured on; None leaves it to the golden outputs.

    Raises:
        DataError: there is no manifest, or it is none of this schema.
        TaskError: the bundle's model cannot be judged on that evaluation set.
        ProviderError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    manifest = read_manifest(bundle)
    found = check_files(bundle, manifest)
    measurement, score = None, None
    if all(finding.status == "passed" for finding in found):
        document = read_document(bundle / "choice.json")
        if document.winner is None:
            text = "the bundle has none: nothing kept the limits when it was built"
            found.append(CheckFinding(kind="file", name="model.onnx", status="missed", text=text))
        else:
            if evaluation is not None:
                check_fits(evaluation, manifest, document)
            try:
                progress("golden inputs")
                found += check_golden(bundle, manifest, place)
                if evaluation is not None:
                    progress(f"score on {evaluation.samples:,} samples")
                    score = device_score(bundle, manifest, document.winner, evaluation, place)
                    found.append(_told(score, document.device.uri))
                if place.kind != "emulated":
                    measurement = _measure(bundle, manifest, document.budget, place, progress)
                found += check_limits(bundle, document.budget, measurement, score)
                if place.kind in NOTES:
                    text = NOTES[place.kind].format(target=place.profile.title)
                    found.append(CheckFinding(kind="limit", name="device", status="note", text=text))
            except StepError as error:
                found.append(CheckFinding(kind="golden", name="model.onnx", status="missed", text=error.reason))
    statuses = {finding.status for finding in found}
    return CheckResult(
        bundle=str(bundle),
        target=manifest.target,
        device=place.device.uri,
        status="bad" if "bad" in statuses else "missed" if "missed" in statuses else "passed",
        findings=tuple(found),
        measurement=measurement,
        score=score,
    )


def check_golden(bundle: Path, manifest: Manifest, place: RunTarget) -> list[CheckFinding]:
    """Run the golden inputs on the device and compare each output with the bundle's, within its tolerance."""
    (found,) = place.outputs(bundle / "model.onnx", [_golden(bundle, manifest, "input")], "golden")
    return [
        _compare(entry, read_golden(bundle, entry), found.get(entry.name))
        for entry in manifest.golden
        if entry.role == "output"
    ]


def _golden(bundle: Path, manifest: Manifest, role: Literal["input", "output"]) -> dict[str, Array]:
    return {entry.name: read_golden(bundle, entry) for entry in manifest.golden if entry.role == role}


def _compare(entry: GoldenEntry, expected: Array, found: Array | None) -> CheckFinding:
    tolerance = entry.tolerance or 0.0
    difference = math.inf if found is None else largest_difference(expected, found)
    kept = difference <= tolerance
    text = (
        f"is off by {difference:.3g} at most; {tolerance:.3g} {'is' if kept else 'would be'} allowed"
        if math.isfinite(difference)
        else "is missing, has another shape, or holds values that are not numbers"
    )
    return CheckFinding(
        kind="golden",
        name=entry.name,
        status="passed" if kept else "missed",
        text=text,
        found=difference if math.isfinite(difference) else None,
        allowed=tolerance,
    )


def _told(score: DeviceScore, built_on: str) -> CheckFinding:
    """Say what the model scores on the device, and what it scored when it was built."""
    found = score.score
    ends = "" if score.ci95 is None else " (95 %: {} to {})".format(*map(words.score, score.ci95))
    text = (
        f"scores {words.score(found.value)}{ends} on {found.samples:,} samples there; "
        f"{words.score(score.built)} on {built_on} when it was built"
    )
    return CheckFinding(kind="score", name=score.task, status="note", text=text, found=found.value)


def _measure(
    bundle: Path, manifest: Manifest, budget: Budget, place: RunTarget, progress: Callable[[str], None]
) -> Measurement:
    """Time and weigh the model on its golden inputs, repeated where the batch is larger."""
    batch = {name: _rows(array, budget.batch_size) for name, array in _golden(bundle, manifest, "input").items()}
    with tempfile.TemporaryDirectory(prefix="edgeopt-check-") as folder:
        inputs = Path(folder) / "inputs.npz"
        write_batches(inputs, [batch])
        return measure(
            bundle / "model.onnx",
            place.device,
            place.profile,
            batch_size=budget.batch_size,
            allow_fallback=place.allow_fallback,
            inputs=inputs,
            kind=place.kind,
            percentile=budget.latency_percentile,
            max_latency_ms=budget.max_latency_ms,
            progress=progress,
        )


def _rows(array: Array, count: int) -> Array:
    return array if not array.ndim or len(array) >= count else np.resize(array, (count, *array.shape[1:]))


def check_limits(
    bundle: Path, budget: Budget, measurement: Measurement | None, score: DeviceScore | None
) -> Iterator[CheckFinding]:
    """Hold what was found on the device against the bundle's own limits.

    Without a measurement, on a device that has none to give, size and score are judged alone.
    """
    known = facts(bundle / "model.onnx")
    size_bytes = known.download_bytes if budget.size_metric == "download" else known.size_bytes
    for found in device_findings(measurement, size_bytes, budget):
        yield _limit(found)
    if score is not None:
        for found in score_findings(score.score, budget):
            yield _limit(found)
    elif budget.min_score is not None or budget.max_score_drop is not None:
        text = "is not measured again: the golden outputs stand for it. --score TASK runs the whole evaluation set"
        yield CheckFinding(kind="limit", name="score", status="note", text=text)


def _limit(found: LimitFinding) -> CheckFinding:
    unit = UNITS[found.limit]
    sign = "at least" if found.floor else "at most"
    allowed = f"{sign} {words.limit(found.allowed, unit)}"
    if found.missing:
        text = f"could not be measured there; {allowed} is asked for"
    else:
        interval = (
            "" if found.judged == found.point else f" (by its 95 % interval {words.quantity(found.judged, unit)})"
        )
        noise = "" if found.kept or found.miss().within_noise is False else ", inside the noise"
        drop = "a drop of " if found.limit == "score" and not found.floor else ""
        text = f"{drop}{words.distinguishable(found.point, found.allowed, unit)}{interval}, {allowed}{noise}"
    return CheckFinding(
        kind="limit",
        name=found.limit,
        status="passed" if found.kept else "missed",
        text=text,
        found=None if found.missing else found.judged,
        allowed=found.allowed,
    )

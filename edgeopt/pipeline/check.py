"""A shipped bundle verified again: hashes of its files, golden outputs on a device, limits measured anew.

In: a bundle, a device, a profile. Out: findings, one a thing that was looked at.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from edgeopt.bench.measure import measure
from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.bundle.golden import Array, GoldenEntry, largest_difference, read_golden
from edgeopt.bundle.manifest import Manifest, changed_files, read_manifest
from edgeopt.device.base import Device
from edgeopt.errors import StepError
from edgeopt.graph.facts import facts
from edgeopt.records.base import Record
from edgeopt.records.budget import Budget
from edgeopt.records.measurement import DeviceKind, Measurement
from edgeopt.records.profile import Profile
from edgeopt.report import words
from edgeopt.report.document import read_document
from edgeopt.report.words import Unit
from edgeopt.select.limits import Finding as LimitFinding
from edgeopt.select.limits import device_findings

UNITS: dict[str, Unit] = {"latency": "ms", "throughput": "per_s", "memory": "bytes", "size": "bytes"}


NOTES: dict[DeviceKind, str] = {
    "stand-in": "this machine only stands in for {target}: name the real one with --device",
    "emulated": "an emulated processor has no times and no memory to measure: those limits are not judged",
}


class Finding(Record, frozen=True, kw_only=True):
    """One thing that was looked at."""

    kind: Literal["file", "golden", "limit"]
    name: str
    """Of the file, the output or the limit."""
    status: Literal["passed", "missed", "bad", "note"]
    """``bad`` is a bundle that is not what was built; ``note`` decides nothing."""
    text: str
    """For people: what was found."""
    found: float | None = None
    """The number that decides, unrounded; null where there is none, or where it is not finite."""
    allowed: float | None = None


class Result(Record, frozen=True, kw_only=True):
    """All findings, and the measurement that the limits were judged by; ``edgeopt check --json`` prints it."""

    schema: Literal["edgeopt/check-1"] = "edgeopt/check-1"
    bundle: str
    """The folder, as it was given."""
    target: str
    device: str
    """URI."""
    status: Literal["passed", "missed", "bad"]
    findings: tuple[Finding, ...]
    measurement: Measurement | None


def check_files(bundle: Path, manifest: Manifest) -> list[Finding]:
    """Compare every file with its hash, and see that the golden arrays are among them."""
    changed = changed_files(bundle, manifest)
    texts = dict.fromkeys(changed, "was changed")
    texts |= {name: "is missing" for name in changed if not (bundle / name).is_file()}
    texts |= {name: "was added" for name in changed if name not in manifest.files}
    texts |= {entry.file: "is not in the manifest" for entry in manifest.golden if entry.file not in manifest.files}
    bad = [Finding(kind="file", name=name, status="bad", text=text) for name, text in sorted(texts.items())]
    whole = f"{len(manifest.files)} files have the hashes of the manifest"
    return bad or [Finding(kind="file", name="all", status="passed", text=whole)]


def check(
    bundle: Path,
    device: Device,
    profile: Profile,
    *,
    kind: DeviceKind,
    allow_fallback: tuple[str, ...],
    progress: Callable[[str], None],
) -> Result:
    """Verify a bundle. A bundle whose files are not what was built is not run.

    Args:
        bundle: A folder that ``edgeopt build`` wrote.
        device: Where the model runs.
        profile: Providers, threads and the timing rule.
        kind: What the device is to the target.
        allow_fallback: As in ``edgeopt.bench.measure.measure``.
        progress: Is told in a few words what happens now.

    Raises:
        DataError: there is no manifest, or it is none of this schema.
        ProviderError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    manifest = read_manifest(bundle)
    found = check_files(bundle, manifest)
    measurement = None
    if all(finding.status == "passed" for finding in found):
        document = read_document(bundle / "choice.json")
        if document.winner is None:
            text = "the bundle has none: nothing kept the limits when it was built"
            found.append(Finding(kind="file", name="model.onnx", status="missed", text=text))
        else:
            try:
                progress("golden inputs")
                found += check_golden(bundle, manifest, device, profile, allow_fallback)
                if kind != "emulated":
                    measurement = _measure(
                        bundle, manifest, document.budget, device, profile, kind, allow_fallback, progress
                    )
                found += check_limits(bundle, document.budget, measurement)
                if kind in NOTES:
                    text = NOTES[kind].format(target=profile.title)
                    found.append(Finding(kind="limit", name="device", status="note", text=text))
            except StepError as error:
                found.append(Finding(kind="golden", name="model.onnx", status="missed", text=error.reason))
    statuses = {finding.status for finding in found}
    return Result(
        bundle=str(bundle),
        target=manifest.target,
        device=device.uri,
        status="bad" if "bad" in statuses else "missed" if "missed" in statuses else "passed",
        findings=tuple(found),
        measurement=measurement,
    )


def check_golden(
    bundle: Path, manifest: Manifest, device: Device, profile: Profile, allow_fallback: tuple[str, ...]
) -> list[Finding]:
    """Run the golden inputs on the device and compare each output with the bundle's, within its tolerance."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-check-") as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        write_batches(inputs, [_golden(bundle, manifest, "input")])
        run_model(
            bundle / "model.onnx", inputs, outputs, device, profile, allow_fallback=allow_fallback, stage="golden"
        )
        found = read_batches(outputs)[0]
    return [
        _compare(entry, read_golden(bundle, entry), found.get(entry.name))
        for entry in manifest.golden
        if entry.role == "output"
    ]


def _golden(bundle: Path, manifest: Manifest, role: Literal["input", "output"]) -> dict[str, Array]:
    return {entry.name: read_golden(bundle, entry) for entry in manifest.golden if entry.role == role}


def _compare(entry: GoldenEntry, expected: Array, found: Array | None) -> Finding:
    tolerance = entry.tolerance or 0.0
    difference = math.inf if found is None else largest_difference(expected, found)
    kept = difference <= tolerance
    text = (
        f"is off by {difference:.3g} at most; {tolerance:.3g} {'is' if kept else 'would be'} allowed"
        if math.isfinite(difference)
        else "is missing, has another shape, or holds values that are not numbers"
    )
    return Finding(
        kind="golden",
        name=entry.name,
        status="passed" if kept else "missed",
        text=text,
        found=difference if math.isfinite(difference) else None,
        allowed=tolerance,
    )


def _measure(
    bundle: Path,
    manifest: Manifest,
    budget: Budget,
    device: Device,
    profile: Profile,
    kind: DeviceKind,
    allow_fallback: tuple[str, ...],
    progress: Callable[[str], None],
) -> Measurement:
    """Time and weigh the model on its golden inputs, repeated where the batch is larger."""
    batch = {name: _rows(array, budget.batch_size) for name, array in _golden(bundle, manifest, "input").items()}
    with tempfile.TemporaryDirectory(prefix="edgeopt-check-") as folder:
        inputs = Path(folder) / "inputs.npz"
        write_batches(inputs, [batch])
        return measure(
            bundle / "model.onnx",
            device,
            profile,
            batch_size=budget.batch_size,
            allow_fallback=allow_fallback,
            inputs=inputs,
            kind=kind,
            percentile=budget.latency_percentile,
            max_latency_ms=budget.max_latency_ms,
            progress=progress,
        )


def _rows(array: Array, count: int) -> Array:
    return array if not array.ndim or len(array) >= count else np.resize(array, (count, *array.shape[1:]))


def check_limits(bundle: Path, budget: Budget, measurement: Measurement | None) -> Iterator[Finding]:
    """Hold the new measurement against the bundle's own limits; the score's takes data that a bundle does not hold.

    Without a measurement, on a device that has none to give, the size is judged alone.
    """
    known = facts(bundle / "model.onnx")
    size_bytes = known.download_bytes if budget.size_metric == "download" else known.size_bytes
    for found in device_findings(measurement, size_bytes, budget):
        yield _limit(found)
    if budget.min_score is not None or budget.max_score_drop is not None:
        text = "is not measured again: a bundle holds no evaluation data. The golden outputs stand for it"
        yield Finding(kind="limit", name="score", status="note", text=text)


def _limit(found: LimitFinding) -> Finding:
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
        text = f"{words.told_apart(found.point, found.allowed, unit)}{interval}, {allowed}{noise}"
    return Finding(
        kind="limit",
        name=found.limit,
        status="passed" if found.kept else "missed",
        text=text,
        found=None if found.missing else found.judged,
        allowed=found.allowed,
    )

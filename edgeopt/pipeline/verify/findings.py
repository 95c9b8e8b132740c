"""What a check of a bundle finds: one record for each check, and the result of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgeopt.errors import EdgeoptError
from edgeopt.pipeline.verify.device_score import DeviceScore
from edgeopt.records.base import Record
from edgeopt.records.measurement import Comparison, Measurement


class CheckFinding(Record, frozen=True, kw_only=True):
    """The result of one check."""

    kind: Literal["file", "device", "golden", "score", "limit", "against"]
    name: str
    """Of the file, the device, the output, the task, the limit, or what is compared with another release."""
    status: Literal["passed", "missed", "bad", "note"]
    """``bad``: the bundle is not the one that was built. ``note``: does not affect the result."""
    text: str
    """The result, in words."""
    found: float | None = None
    """The number that decides, unrounded; null if there is none or it is not finite."""
    allowed: float | None = None


class CheckResult(Record, frozen=True, kw_only=True):
    """All findings, and the measurement that the limits were judged by; ``edgeopt check --json`` prints this."""

    schema: Literal["edgeopt/check-1"] = "edgeopt/check-1"
    bundle: str
    """The folder, as the user gave it."""
    target: str
    device: str
    """URI."""
    status: Literal["passed", "missed", "bad"]
    findings: tuple[CheckFinding, ...]
    measurement: Measurement | None
    score: DeviceScore | None
    """null if no task was named."""
    comparison: Comparison | None = None
    """The A/B against another release; null if none was named."""


def to_result(
    bundle: Path,
    target: str,
    device: str,
    findings: Sequence[CheckFinding],
    *,
    measurement: Measurement | None = None,
    score: DeviceScore | None = None,
    comparison: Comparison | None = None,
) -> CheckResult:
    """Return the result of findings: the worst of them counts."""
    statuses = {finding.status for finding in findings}
    return CheckResult(
        bundle=str(bundle),
        target=target,
        device=device,
        status="bad" if "bad" in statuses else "missed" if "missed" in statuses else "passed",
        findings=tuple(findings),
        measurement=measurement,
        score=score,
        comparison=comparison,
    )


def device_failed(bundle: Path, target: str, uri: str, error: EdgeoptError) -> CheckResult:
    """Return the result for a device that could not be used."""
    finding = CheckFinding(kind="device", name=uri, status="missed", text=str(error))
    return to_result(bundle, target, uri, [finding])

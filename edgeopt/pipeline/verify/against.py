"""A bundle's model next to another release: its bytes, and an interleaved A/B of its time on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from edgeopt.bench.compare import compare
from edgeopt.bench.run_target import RunTarget
from edgeopt.errors import DataError, InputError, StepError
from edgeopt.graph.facts import read_facts
from edgeopt.pipeline.verify.findings import CheckFinding
from edgeopt.records.measurement import Comparison
from edgeopt.report import words
from edgeopt.report.parts import LatencyComparison
from edgeopt.report.sentences import speed
from edgeopt.statistics import comparison_ratio, verdict

_Status = Literal["passed", "missed", "note"]


class Release(NamedTuple):
    """What a bundle is compared with."""

    path: Path
    """A bundle, or an ``.onnx`` file."""
    max_regression: float | None
    """How much larger or slower the new file may be, as a ratio; None if the comparison only informs."""

    @property
    def model(self) -> Path:
        """The file.

        Raises:
            InputError: there is none.
        """
        model = self.path / "model.onnx" if self.path.is_dir() else self.path
        if not model.is_file():
            raise InputError(f"--against {self.path} is neither a bundle with a model.onnx nor an .onnx file.")
        return model


def compare_with(
    model: Path, release: Release, target: RunTarget, progress: Callable[[str], None]
) -> tuple[Comparison | None, list[CheckFinding]]:
    """Compare a file with that of another release.

    Args:
        model: The new file.
        release: The other one.
        target: Where both run, with inputs.
        progress: Called with a few words on the current step.

    Returns:
        The A/B, or None if the device has no times or the other file does not take the same inputs; and the findings.

    Raises:
        InputError, DeviceError: see ``edgeopt.bench.compare.compare``.
    """
    other, findings = release.model, list[CheckFinding]()
    try:
        findings.append(_compare_sizes(read_facts(model).size_bytes, read_facts(other).size_bytes, release))
        if target.kind == "emulated":
            return None, findings
        comparison = compare(model, other, target, progress=progress)
    except (StepError, InputError, DataError) as error:  # such as other inputs, or a damaged file
        status: _Status = "note" if release.max_regression is None else "missed"
        text = f"cannot be compared with {release.path}: {error}"
        return None, [*findings, CheckFinding(kind="against", name="release", status=status, text=text)]
    ratio = comparison_ratio(comparison)
    found = LatencyComparison(latency_ratio=ratio.value, ci95=(ratio.low, ratio.high), verdict=verdict(comparison))
    certain = ratio.value if found.verdict == "slower" else 1.0  # a difference that may be noise doesn't count
    text = f"is {speed(found)} than {release.path}{_allowed(release)}"
    return comparison, [*findings, _finding("release-latency", _status(certain, release), text, ratio.value, release)]


def _compare_sizes(mine: int, other: int, release: Release) -> CheckFinding:
    ratio = mine / other
    changed = f"{words.times(max(ratio, 1 / ratio))} {'larger' if ratio > 1 else 'smaller'} than"
    change = "as large as" if mine == other else changed
    text = f"{words.size(mine)}, {change} {release.path} ({words.size(other)}){_allowed(release)}"
    return _finding("release-size", _status(ratio, release), text, ratio, release)


def _allowed(release: Release) -> str:
    return "" if release.max_regression is None else f"; up to {100 * release.max_regression:g} % more is allowed"


def _status(ratio: float, release: Release) -> _Status:
    if release.max_regression is None:
        return "note"
    return "missed" if ratio > 1 + release.max_regression else "passed"


def _finding(
    name: str, status: Literal["passed", "missed", "note"], text: str, ratio: float, release: Release
) -> CheckFinding:
    allowed = None if release.max_regression is None else 1 + release.max_regression
    return CheckFinding(kind="against", name=name, status=status, text=text, found=ratio, allowed=allowed)

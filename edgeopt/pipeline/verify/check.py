"""Verify a shipped bundle again: hashes of its files, golden outputs on a device, and its limits.

In: a bundle, a run target, and an evaluation set to measure the score on, if any. Out: one finding per check.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from edgeopt.bench.measure import measure
from edgeopt.bench.outputs import run_arrays, write_batches
from edgeopt.bench.run_target import RunTarget
from edgeopt.bundle.golden import Array, GoldenEntry, different_ratio, largest_difference, read_golden
from edgeopt.bundle.manifest import SIGNATURE_NAME, Manifest, find_changed_files, read_manifest
from edgeopt.bundle.signature import PublicKey, find_signature_fault
from edgeopt.errors import StepError
from edgeopt.graph.facts import read_facts
from edgeopt.pipeline.verify.against import Release, compare_with
from edgeopt.pipeline.verify.device_score import DeviceScore, check_evaluation_set, score_on_device
from edgeopt.pipeline.verify.findings import CheckFinding, CheckResult, to_result
from edgeopt.pipeline.verify.golden_answers import compare_golden_answers
from edgeopt.records.budget import Budget
from edgeopt.records.measurement import DeviceKind, Measurement
from edgeopt.records.scoring import ScoreDirection
from edgeopt.report import words
from edgeopt.report.document import Document, read_document
from edgeopt.report.proof import with_runtime
from edgeopt.report.words import Unit
from edgeopt.select.limits import LimitFinding, judge_device_limits, judge_score_limits

if TYPE_CHECKING:
    from edgeopt.pipeline.evaluation import EvaluationSet

_UNITS: dict[str, Unit] = {
    "latency": "ms",
    "throughput": "per_s",
    "memory": "bytes",
    "size": "bytes",
    "score": "score",
    "class": "score",
    "flips": "score",
}
_ORT_PROVIDERS = ("CPUExecutionProvider",)
"""A file in ONNX Runtime's own format is made for the processor."""
_BATCH = "batch"
"""Name of the batch's dimension in the files that edgeopt exports."""
_DEVICE_NOTES: dict[DeviceKind, str] = {
    "stand-in": "this machine only stands in for {target}: give the device itself with --device",
    "emulated": "an emulated processor has no real times or memory to measure: those limits are not checked",
}


def check_files(bundle: Path, manifest: Manifest) -> list[CheckFinding]:
    """Compare every file with its hash, and check that the manifest lists the files of the golden arrays."""
    changed = find_changed_files(bundle, manifest)
    texts = dict.fromkeys(changed, "was changed")
    texts |= {name: "is missing" for name in changed if not (bundle / name).is_file()}
    texts |= {name: "was added" for name in changed if name not in manifest.files}
    texts |= {entry.file: "is not in the manifest" for entry in manifest.golden if entry.file not in manifest.files}
    bad = [CheckFinding(kind="file", name=name, status="bad", text=text) for name, text in sorted(texts.items())]
    text = f"{len(manifest.files)} files match their hashes in the manifest"
    return bad or [CheckFinding(kind="file", name="all", status="passed", text=text)]


def check_signature(bundle: Path, manifest: Manifest, key: PublicKey | None) -> list[CheckFinding]:
    """Verify a bundle's signature; without a key, one that is there is only mentioned."""
    if key is not None:
        fault = find_signature_fault(bundle, manifest, key)
        text = fault or f"is by the key {key.path}, for every file"
        return [CheckFinding(kind="file", name=SIGNATURE_NAME, status="bad" if fault else "passed", text=text)]
    if (bundle / SIGNATURE_NAME).is_file():
        text = "is not verified: name the key of who built the bundle with --public-key KEY.pub"
        return [CheckFinding(kind="file", name=SIGNATURE_NAME, status="note", text=text)]
    return []


def check_bundle(
    bundle: Path,
    run_target: RunTarget,
    *,
    progress: Callable[[str], None],
    evaluation: EvaluationSet | None = None,
    release: Release | None = None,
    key: PublicKey | None = None,
) -> CheckResult:
    """Verify a bundle. If its files were changed, or its signature does not hold, nothing is run.

    Args:
        bundle: A folder that ``edgeopt build`` wrote.
        run_target: Where the model runs.
        progress: Called with a few words on the current step.
        evaluation: The set to measure the score on; None to compare only the golden outputs.
        release: Another file to compare with; None for none.
        key: Verifies the signature; None for no verification.

    Raises:
        DataError: the manifest is missing or has another schema.
        TaskError: the evaluation set does not fit the bundle's model.
        ProviderError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    manifest = read_manifest(bundle)
    findings = [*check_files(bundle, manifest), *check_signature(bundle, manifest, key)]
    measurement, score, comparison = None, None, None
    if all(finding.status != "bad" for finding in findings):
        document = read_document(bundle / "choice.json")
        if document.winner is None:
            text = "is not in the bundle: nothing kept the limits when it was built"
            findings.append(CheckFinding(kind="file", name="model.onnx", status="missed", text=text))
        else:
            if evaluation is not None:
                check_evaluation_set(evaluation, manifest, document)
            measurement, score = _check_model(bundle, manifest, document, run_target, progress, evaluation, findings)
            if release is not None:
                with golden_batch(bundle, manifest, document.budget, run_target) as target:
                    comparison, compared = compare_with(bundle / "model.onnx", release, target, progress)
                findings += compared
    return to_result(
        bundle, manifest.target, run_target.device.uri, findings,
        measurement=measurement, score=score, comparison=comparison,
    )  # fmt: skip


def _check_model(
    bundle: Path,
    manifest: Manifest,
    document: Document,
    run_target: RunTarget,
    progress: Callable[[str], None],
    evaluation: EvaluationSet | None,
    findings: list[CheckFinding],
) -> tuple[Measurement | None, DeviceScore | None]:
    """Run a bundle's model and add what is found; if it does not run, that is a finding too."""
    assert document.winner is not None
    measurement, score = None, None
    try:
        progress("golden inputs")
        findings += check_golden(bundle, manifest, run_target)
        findings += check_ort_file(bundle, manifest, run_target)
        if evaluation is not None:
            progress(f"score on {evaluation.samples:,} samples")
            score = score_on_device(bundle, manifest, document.winner, evaluation, run_target, document.score_kind)
            findings.append(_score_finding(score, document.device.uri))
        if run_target.kind != "emulated":
            measurement = _measure(bundle, manifest, document.budget, run_target, progress)
        findings += check_limits(bundle, document.budget, measurement, score)
        if run_target.kind in _DEVICE_NOTES:
            text = _DEVICE_NOTES[run_target.kind].format(target=run_target.profile.title)
            findings.append(CheckFinding(kind="limit", name="device", status="note", text=text))
    except StepError as error:
        findings.append(CheckFinding(kind="golden", name="model.onnx", status="missed", text=error.reason))
    return measurement, score


def check_golden(bundle: Path, manifest: Manifest, run_target: RunTarget) -> list[CheckFinding]:
    """Run the golden inputs on the device and compare each output with the bundle's, within its tolerance."""
    (outputs,) = run_arrays(bundle / "model.onnx", [_read_inputs(bundle, manifest)], run_target, "golden")
    return [*_compare_all(bundle, manifest, outputs), *compare_golden_answers(manifest, outputs)]


def check_ort_file(bundle: Path, manifest: Manifest, run_target: RunTarget) -> list[CheckFinding]:
    """Run the bundle's ``.ort``, if it has one, on the golden inputs on the device's processor, and compare outputs.

    A runtime older than the one that made the file may not know its format: that it does not run there is only a note.
    """
    if manifest.ort is None:
        return []
    name, built_with = manifest.ort.file, manifest.ort.onnxruntime
    target = replace(run_target, profile=msgspec.structs.replace(run_target.profile, providers=_ORT_PROVIDERS))
    try:
        (outputs,) = run_arrays(bundle / name, [_read_inputs(bundle, manifest)], target, "golden")
    except StepError as error:
        _, environment = run_target.device.describe()
        if not _is_older(environment.onnxruntime, built_with):
            return [CheckFinding(kind="golden", name=name, status="missed", text=error.reason)]
        text = f"is not run: it was made with onnxruntime {built_with}, and the device has {environment.onnxruntime}"
        return [CheckFinding(kind="golden", name=name, status="note", text=f"{text} ({error.reason})")]
    findings = _compare_all(bundle, manifest, outputs)
    return [msgspec.structs.replace(finding, name=f"{name}: {finding.name}") for finding in findings]


def _is_older(version: str, than: str) -> bool:
    """Compare two versions of ONNX Runtime by their first three numbers; one without numbers counts as older."""
    numbers, others = ([int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version, than))
    return numbers < others


def _compare_all(bundle: Path, manifest: Manifest, outputs: Mapping[str, Array]) -> list[CheckFinding]:
    return [
        _compare(entry, read_golden(bundle, entry), outputs.get(entry.name))
        for entry in manifest.golden
        if entry.role == "output"
    ]


def _read_inputs(bundle: Path, manifest: Manifest) -> dict[str, Array]:
    return {entry.name: read_golden(bundle, entry) for entry in manifest.golden if entry.role == "input"}


def _compare(entry: GoldenEntry, expected: Array, found: Array | None) -> CheckFinding:
    if entry.different_ratio and found is not None:
        return _compare_whole_numbers(entry, expected, found)
    tolerance = entry.tolerance or 0.0
    difference = math.inf if found is None else largest_difference(expected, found)
    text = (
        f"is off by up to {difference:.3g}; {tolerance:.3g} is allowed"
        if math.isfinite(difference)
        else "is missing, has another shape, or has values that are not finite"
    )
    return CheckFinding(
        kind="golden",
        name=entry.name,
        status="passed" if difference <= tolerance else "missed",
        text=text,
        found=difference if math.isfinite(difference) else None,
        allowed=tolerance,
    )


def _compare_whole_numbers(entry: GoldenEntry, expected: Array, found: Array) -> CheckFinding:
    ratio, allowed = different_ratio(expected, found), entry.different_ratio
    text = f"differs in {ratio:.3g} of its values; {allowed:.3g} is allowed"
    status: Literal["passed", "missed"] = "passed" if ratio <= allowed else "missed"
    return CheckFinding(kind="golden", name=entry.name, status=status, text=text, found=ratio, allowed=allowed)


def _score_finding(score: DeviceScore, built_on: str) -> CheckFinding:
    """Report the model's score on the device, and its score when it was built."""
    value, samples = score.score.value, score.score.samples
    interval = "" if score.ci95 is None else " (95 %: {} to {})".format(*map(words.score, score.ci95))
    text = (
        f"scores {words.score(value)}{interval} on {samples:,} samples; "
        f"{words.score(score.built)} on {built_on} when it was built"
    )
    return CheckFinding(kind="score", name=score.task, status="note", text=text, found=value)


def _measure(
    bundle: Path, manifest: Manifest, budget: Budget, run_target: RunTarget, progress: Callable[[str], None]
) -> Measurement:
    """Measure time and memory of the model on its golden inputs."""
    with golden_batch(bundle, manifest, budget, run_target) as target:
        return measure(
            bundle / "model.onnx",
            target,
            percentile=budget.latency_percentile,
            max_latency_ms=budget.max_latency_ms,
            progress=progress,
        )


@contextmanager
def golden_batch(bundle: Path, manifest: Manifest, budget: Budget, run_target: RunTarget) -> Iterator[RunTarget]:
    """Give a target that runs the golden inputs, repeated if the budget's batch is larger."""
    shapes = {info.name: info.shape for info in manifest.inputs}
    batch = {
        name: take_samples_of(array, shapes[name], budget.batch_size)
        for name, array in _read_inputs(bundle, manifest).items()
    }
    with tempfile.TemporaryDirectory(prefix="edgeopt-check-") as folder:
        inputs = Path(folder) / "inputs.npz"
        write_batches(inputs, [batch])
        yield replace(run_target, batch_size=budget.batch_size, inputs=inputs)


def take_samples_of(array: Array, shape: Sequence[int | str], count: int) -> Array:
    """Return an input with ``count`` samples: the first ones, repeated if there are too few.

    Args:
        array: One batch of the input.
        shape: As the manifest has it. The batch is the dimension called ``batch``, or else the first one if it is
            dynamic. An input without either is the same for all samples, or the graph has a fixed batch: it stays.
        count: Samples.
    """
    axis = shape.index(_BATCH) if _BATCH in shape else 0 if shape and isinstance(shape[0], str) else None
    return array if axis is None else np.take(array, np.arange(count) % array.shape[axis], axis)


def check_limits(
    bundle: Path, budget: Budget, measurement: Measurement | None, score: DeviceScore | None
) -> Iterator[CheckFinding]:
    """Compare the measurement, the size and the score with the bundle's own limits.

    Without a measurement (on an emulated device), only size and score are compared.
    """
    facts = read_facts(bundle / "model.onnx")
    size_bytes = budget.deciding_bytes(facts.size_bytes, facts.download_bytes)
    for limit in judge_device_limits(measurement, size_bytes, budget):
        yield _limit_finding(limit, budget)
    if score is not None:
        for limit in judge_score_limits(score.score, budget):
            if limit.limit not in ("class", "flips"):
                yield _limit_finding(limit, budget, score.score.direction)
    elif budget.min_score is not None or budget.max_score_drop is not None:
        text = "is not measured: only the golden outputs were compared. --score TASK runs the whole evaluation set"
        yield CheckFinding(kind="limit", name="score", status="note", text=text)
    for name, allowed in (("class", budget.max_class_drop), ("flips", budget.max_flip_ratio)):
        if allowed is not None:
            text = "is not compared here: single answers are not"
            yield CheckFinding(kind="limit", name=name, status="note", text=text)


def _limit_finding(limit: LimitFinding, budget: Budget, direction: ScoreDirection = "higher") -> CheckFinding:
    unit = _UNITS[limit.limit]
    allowed = f"{'at least' if limit.floor else 'at most'} {words.limit(limit.allowed, unit)}"
    if limit.missing:
        text = f"could not be measured; limit: {allowed}"
    else:
        end = "down" if limit.floor else "up"
        interval = f" ({100 * budget.confidence:g} %: {end} to {words.quantity(limit.judged, unit)})"
        interval = "" if limit.judged == limit.point else interval
        noise = "" if limit.kept or not limit.to_miss().within_noise else ", within the noise"
        drop = ("a drop of " if direction == "higher" else "an increase of ") if limit.is_drop else ""
        runtime = with_runtime(budget) if limit.limit == "size" else ""
        text = f"{drop}{words.distinguishable(limit.point, limit.allowed, unit)}{runtime}{interval}, {allowed}{noise}"
    return CheckFinding(
        kind="limit",
        name=limit.limit,
        status="passed" if limit.kept else "missed",
        text=text,
        found=None if limit.missing else limit.judged,
        allowed=limit.allowed,
    )

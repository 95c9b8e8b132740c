"""Measurement, score and comparison of a build's files, each looked up in the ledger first."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.bench.changes import match_layers
from edgeopt.bench.compare import compare
from edgeopt.bench.measure import measure
from edgeopt.bench.nodes import (
    DEFAULT_PROFILING_TURNS,
    LONG_PROFILING_TURNS,
    FileTime,
    ProfilingTurns,
    profile_nodes,
)
from edgeopt.bench.outputs import read_batches, run_model
from edgeopt.bench.run_target import RunTarget
from edgeopt.device.pool import DevicePool, leased
from edgeopt.errors import CannotProfileError, EdgeoptError, TaskError
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.device_calibration import add_estimate
from edgeopt.records.budget import DEFAULT_CONFIDENCE
from edgeopt.records.measurement import Comparison, Measurement, NodeChange
from edgeopt.records.trial import AnswerChanges, Score
from edgeopt.scoring.answers import compare_answers, unchanged
from edgeopt.scoring.drop import drop_interval, is_mean, mean_of, worsening
from edgeopt.statistics import Interval, end_at, is_complete, latency_interval_ms
from edgeopt.store.files import write_whole

_numbers = itertools.count()
"""Of files of outputs: several threads may score the baseline at a time."""
SCORING_VERSION = 5
"""Goes up when the same outputs get another score or another interval; kept scores are then computed again."""


class FileScore(NamedTuple):
    """A file's score on a set."""

    value: float
    total: int
    """Number of samples."""
    samples: NDArray[np.float64] | None = None
    """Scores of single samples."""
    rows: NDArray[np.float64] | None = None
    """A row of numbers for each sample, which the score is computed from, or from their sums."""
    pairs: list[tuple[Any, Any]] | None = None
    """Outputs and targets, if the file was run just now."""

    @property
    def judged(self) -> int | None:
        """The number of samples that count, because they have a label; None if all do."""
        count = self.total
        if self.mean_of is not None:
            count = len(self.mean_of)
        elif self.rows is not None:
            count = len(self.rows)
        return count if count < self.total else None

    @property
    def mean_of(self) -> NDArray[np.float64] | None:
        """The scores of single samples if the score is their mean."""
        return mean_of(self)


class Evaluator:
    """Measures and scores the files of one build.

    Nothing here may run while a training does, except ``outputs`` and ``score``.

    Args:
        build: The build.
        baseline: SHA-256 of the baseline's file.
    """

    def __init__(self, build: Build, baseline: str) -> None:
        self.build = build
        self.baseline = baseline
        self._references: dict[Path, Path] = {}
        """Files of the baseline's outputs, by the inputs."""
        self._reference_lock = threading.Lock()

    def measurement(self, sha256: str) -> Measurement:
        """Return a file's measurement on the build's device.

        One that ended early because another limit was already decided is made again.
        """
        build, budget = self.build, self.build.budget
        has_choice = len(build.run_targets) > 1 and budget.confidence != DEFAULT_CONFIDENCE
        chosen_by = {"confidence": budget.confidence} if has_choice else {}
        return build.ledger.remember(
            build.keys.of("measurement", file=sha256, percentile=budget.latency_percentile, **chosen_by),
            Measurement,
            lambda: self._measure(sha256),
            is_usable=lambda found: is_complete(found, budget.latency_percentile, budget.max_latency_ms),
        )

    def measure_side_by_side(self, files: Sequence[str]) -> None:
        """Measure files that were not measured before, one on each device of a pool; what fails is tried again later.

        Args:
            files: SHA-256 of each.
        """
        device = self.build.device
        if not isinstance(device, DevicePool):
            return

        def measure_one(sha256: str) -> None:
            with contextlib.suppress(EdgeoptError):
                self.measurement(sha256)

        with ThreadPoolExecutor(len(device.devices)) as threads:
            list(threads.map(measure_one, dict.fromkeys(files)))

    def _measure(self, sha256: str) -> Measurement:
        build, percentile = self.build, self.build.budget.latency_percentile
        model = build.workspace.artifact(sha256)
        measured = [self._measure_at(model, target) for target in build.run_targets]
        found = worst_measurement(measured, percentile, build.budget.confidence)
        if build.calibration is None:
            return found
        return run_step(
            "estimate",
            add_estimate,
            found,
            model,
            build.profile,
            build.calibration,
            percentile,
            build.run_target.inputs,
        )

    def _measure_at(self, model: Path, target: RunTarget) -> Measurement:
        budget = self.build.budget
        with leased(target.device) as device:
            return run_step(
                "measure",
                measure,
                model,
                replace(target, device=device),
                percentile=budget.latency_percentile,
                max_latency_ms=budget.max_latency_ms,
                progress=lambda _: None,
            )

    def comparison(self, sha256: str, against: str | None = None) -> Comparison:
        """Return the interleaved A/B of a file against another one, by default the baseline."""
        build, other = self.build, against or self.baseline
        return build.ledger.remember(
            build.keys.of("comparison", file=sha256, against=other),
            Comparison,
            lambda: run_step(
                "compare",
                compare,
                build.workspace.artifact(sha256),
                build.workspace.artifact(other),
                build.run_target,
                seed=build.seed,
            ),
        )

    def changes(self, sha256: str, against: str) -> tuple[NodeChange, ...]:
        """Return how much time the layers of an int8 file lost and gained against its float counterpart.

        The largest loss comes first. Empty if the device cannot time single nodes.
        """
        files = [self.build.workspace.artifact(name) for name in (against, sha256)]
        profiles = self._profiles(files, LONG_PROFILING_TURNS)
        return tuple(match_layers(profiles[0].nodes, profiles[1].nodes)) if profiles else ()

    def times(self, files: Sequence[Path]) -> tuple[float, ...]:
        """Return the time of each of several files that took turns, in ns; fewer if they took too long.

        Empty if the device cannot time single nodes.
        """
        return tuple(one.ns for one in self._profiles(files, DEFAULT_PROFILING_TURNS))

    def _profiles(self, files: Sequence[Path], turns: ProfilingTurns) -> list[FileTime]:
        try:
            return run_step("profile", profile_nodes, files, self.build.run_target, turns)
        except CannotProfileError:
            return []

    def outputs(self, sha256: str, inputs: Path) -> Path:
        """Run a file on stored inputs and return the file of its outputs, which the caller removes."""
        build = self.build
        name = f"outputs-{sha256[:16]}-{inputs.stem}-{next(_numbers)}.npz"
        target = build.workspace.folder("arrays") / name
        run_step("evaluate", run_model, build.workspace.artifact(sha256), inputs, target, build.run_target)
        return target

    def score(self, sha256: str) -> Score:
        """Return a file's score on the selection set, and its drop against the baseline over the same samples."""
        build = self.build
        key = build.keys.of("score", file=sha256, baseline=self.baseline, **self._score_details)
        return build.ledger.remember(
            key, Score, lambda: self.compare_scores(sha256, build.data.eval_file, build.data.targets)
        )

    def compare_scores(self, sha256: str, inputs: Path, targets: Sequence[Any]) -> Score:
        """Return a file's score on a set, and its drop against the baseline over the same samples."""
        direction = self.build.data.score_direction
        found, base = (self.evaluate(name, inputs, targets) for name in (sha256, self.baseline))
        interval = self._drop_interval(sha256, base, found, inputs, targets)
        return Score(
            answers=self._answer_changes(sha256, found, inputs, targets) if self.build.budget.limits_answers else None,
            value=found.value,
            drop=worsening(base.value, found.value, direction),
            drop_ci95=None if interval is None else (interval.low, interval.high),
            samples=found.total,
            judged=found.judged,
            direction=direction,
        )

    @property
    def _score_details(self) -> dict[str, object]:
        """What the key of a score contains besides the file."""
        wish = self.build.data.score_wish
        asked = None if wish is None else (wish.score, wish.output, wish.ignored)
        answers = {"answers": self.build.budget.max_class_drop} if self.build.budget.limits_answers else {}
        return {"scoring": SCORING_VERSION, "asked": asked, **answers}

    def _answer_changes(self, sha256: str, found: FileScore, inputs: Path, targets: Sequence[Any]) -> AnswerChanges:
        """Return how a file's answers differ from the baseline's.

        Raises:
            TaskError: its outputs are no answers.
        """
        labels, kind = targets or self.reference(inputs), self.build.data.score_kind
        limit = self.build.budget.max_class_drop
        before = self.build.data.pairs(self.baseline_outputs(inputs), labels)
        if sha256 == self.baseline:
            return unchanged(compare_answers(kind, before, before, limit))
        return compare_answers(kind, before, found.pairs or self.pairs(sha256, inputs, targets), limit)

    def _drop_interval(
        self, sha256: str, base: FileScore, found: FileScore, inputs: Path, targets: Sequence[Any]
    ) -> Interval | None:
        """Return the paired interval of the drop of the score itself; None if its samples cannot be drawn."""
        if sha256 == self.baseline:
            return Interval(0.0, 0.0, 0.0)
        data = self.build.data

        def read_samples() -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]], list[int]]:
            before = data.pairs(self.baseline_outputs(inputs), targets or self.reference(inputs))
            return before, found.pairs or self.pairs(sha256, inputs, targets), self._counts(inputs)

        return drop_interval(base, found, data, read_samples, seed=self.build.seed)

    def pairs(self, sha256: str, inputs: Path, targets: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Run a file on a set and return pairs of outputs and targets; without labels, of the baseline's outputs."""
        if sha256 == self.baseline:
            batches = self.baseline_outputs(inputs)
        else:
            outputs = self.outputs(sha256, inputs)
            batches = read_batches(outputs)
            outputs.unlink(missing_ok=True)
        return self.build.data.pairs(batches, targets or self.reference(inputs))

    def evaluate(self, sha256: str, inputs: Path, targets: Sequence[Any]) -> FileScore:
        """Return a file's score and what its interval is computed from, which is kept in the workspace."""
        build, data = self.build, self.build.data
        reference = self.baseline if not targets else None
        key = build.keys.of(
            "sample-scores", file=sha256, inputs=inputs.name, reference=reference, **self._score_details
        )
        path = build.workspace.folder("arrays") / f"samples-{key.digest}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as stored:
                parts = {name: stored[name] for name in ("samples", "rows") if name in stored.files}
                return FileScore(float(stored["score"]), int(stored["total"]), **parts)
        pairs = self.pairs(sha256, inputs, targets)
        found = FileScore(
            value=data.score(pairs),
            total=sum(self._counts(inputs)),
            samples=data.sample_scores(pairs),
            rows=data.sample_statistics(pairs),
            pairs=pairs,
        )
        if found.samples is not None and data.score_kind is None:
            check_sample_scores(len(found.samples), len(pairs), found.total, data.task.spec)
        if found.rows is not None:
            check_statistics(found.value, data.score_rows(found.rows), data.task.spec)
        arrays: dict[str, Any] = {"score": found.value, "total": found.total}
        arrays |= {} if found.samples is None else {"samples": found.samples}
        arrays |= {} if found.rows is None else {"rows": found.rows}
        write_whole(path, lambda partial: np.savez(partial, **arrays))
        is_enough = found.mean_of is not None or found.rows is not None
        if sha256 == self.baseline and targets and is_enough and not build.budget.limits_answers:
            self._forget_outputs(inputs)
        return found

    def _counts(self, inputs: Path) -> list[int]:
        """Return the number of samples in each batch of a set."""
        if inputs == self.build.data.eval_file:
            return self.build.data.counts
        return [self.build.data.count(batch) for batch in read_batches(inputs)]

    def reference(self, inputs: Path) -> list[Any]:
        """Return the baseline's own outputs, which files are compared with if there are no labels."""
        outputs = self.baseline_outputs(inputs)
        return [pair[0] for pair in self.build.data.pairs(outputs, [None] * len(outputs))]

    def _forget_outputs(self, inputs: Path) -> None:
        """Remove the baseline's outputs, which may be large, once its scores by sample are enough."""
        with self._reference_lock:
            outputs = self._references.pop(inputs, None)
            if outputs is not None:
                outputs.unlink(missing_ok=True)

    def baseline_outputs(self, inputs: Path) -> list[dict[str, NDArray[Any]]]:
        """Return what the baseline's file gives for a set; it is run once."""
        with self._reference_lock:
            if inputs not in self._references:
                found = self.outputs(self.baseline, inputs)
                self._references[inputs] = found.replace(found.with_name(f"reference-{inputs.stem}.npz"))
            return read_batches(self._references[inputs])


def worst_measurement(
    measurements: Sequence[Measurement], percentile: float, confidence: float = DEFAULT_CONFIDENCE
) -> Measurement:
    """Return the slowest of a file's measurements at several sizes, with the largest peak memory of all."""

    def judged_ms(found: Measurement) -> float:
        point, _, high = latency_interval_ms(found, percentile)
        return end_at(point, high, confidence)

    slowest = max(measurements, key=judged_ms)
    peaks = [found.memory for found in measurements if found.memory is not None]
    if len(peaks) < len(measurements):
        return slowest
    return msgspec.structs.replace(slowest, memory=max(peaks, key=lambda memory: memory.peak_bytes))


def check_sample_scores(scores: int, batches: int, samples: int, spec: str) -> None:
    """Check that a task's ``sample_scores`` are not those of batches.

    Raises:
        TaskError: they are, so an interval over them would be that of a few samples.
    """
    if scores == batches < samples:
        raise TaskError(
            f"task '{spec}': sample_scores() gives {scores} numbers for {samples:,} samples in {batches} batches. It "
            "has to return one number a sample, for all batches in a row."
        )


def check_statistics(score: float, from_rows: float, spec: str) -> None:
    """Check that a task's ``score_statistics`` or ``score_rows`` is its score.

    Raises:
        TaskError: it is not, so an interval of it would be that of another number.
    """
    if not is_mean(score, np.asarray([from_rows])):
        raise TaskError(
            f"task '{spec}': score_statistics() or score_rows() gives {from_rows:g} for sample_statistics(), but "
            f"score() gives {score:g}. Both have to be the same number; without sample_statistics() the interval takes "
            "longer."
        )


def timed(seconds: dict[str, float], name: str, function: Callable[[], Any]) -> Any:
    """Call ``function`` and add its wall time to ``seconds``."""
    start = time.perf_counter()
    try:
        return function()
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

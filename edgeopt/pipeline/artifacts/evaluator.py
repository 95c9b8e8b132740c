"""Measurement, score and comparison of a build's files, each looked up in the ledger first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from edgeopt.errors import CannotProfileError
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.device_calibration import add_estimate
from edgeopt.records.measurement import Comparison, Measurement, NodeChange
from edgeopt.records.trial import Score
from edgeopt.statistics import is_complete, latency_interval_ms, paired_drop_interval
from edgeopt.store.files import write_whole


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

    def measurement(self, sha256: str) -> Measurement:
        """Return a file's measurement on the build's device.

        One that ended early because another limit was already decided is made again.
        """
        build, budget = self.build, self.build.budget
        return build.ledger.remember(
            build.keys.of("measurement", file=sha256, percentile=budget.latency_percentile),
            Measurement,
            lambda: self._measure(sha256),
            is_usable=lambda found: is_complete(found, budget.latency_percentile, budget.max_latency_ms),
        )

    def _measure(self, sha256: str) -> Measurement:
        build, percentile = self.build, self.build.budget.latency_percentile
        model = build.workspace.artifact(sha256)
        found = worst_measurement([self._measure_at(model, target) for target in build.run_targets], percentile)
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
        return run_step(
            "measure",
            measure,
            model,
            target,
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
        target = build.workspace.folder("arrays") / f"outputs-{sha256[:16]}-{inputs.stem}.npz"
        run_step("evaluate", run_model, build.workspace.artifact(sha256), inputs, target, build.run_target)
        return target

    def score(self, sha256: str) -> Score:
        """Return a file's score on the selection set, and its drop against the baseline over the same samples."""
        build = self.build
        key = build.keys.of("score", file=sha256, baseline=self.baseline)
        return build.ledger.remember(key, Score, lambda: self._score(sha256))

    def _score(self, sha256: str) -> Score:
        data = self.build.data
        value, samples = self.evaluate(sha256, data.eval_file, data.targets)
        base_value, base_samples = self.evaluate(self.baseline, data.eval_file, data.targets)
        return Score(
            value=value,
            drop=base_value - value,
            drop_ci95=drop_interval(base_samples, samples),
            samples=data.samples,
        )

    def evaluate(self, sha256: str, inputs: Path, targets: Sequence[Any]) -> tuple[float, NDArray[np.float64] | None]:
        """Return a file's score and its scores of single samples; the latter are kept in the workspace."""
        build = self.build
        reference = self.baseline if not targets else None
        key = build.keys.of("sample-scores", file=sha256, inputs=inputs.name, reference=reference)
        path = build.workspace.folder("arrays") / f"samples-{key.digest}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as stored:
                return float(stored["score"]), stored["samples"] if "samples" in stored.files else None
        outputs = self.outputs(sha256, inputs)
        pairs = build.data.pairs(read_batches(outputs), targets or self.reference(inputs))
        value, samples = build.data.score(pairs), build.data.sample_scores(pairs)
        arrays = {"score": np.float64(value)} if samples is None else {"score": np.float64(value), "samples": samples}
        write_whole(path, lambda partial: np.savez(partial, **arrays))
        outputs.unlink(missing_ok=True)
        return value, samples

    def reference(self, inputs: Path) -> list[Any]:
        """Return the baseline's own outputs, which files are compared with if there are no labels."""
        outputs = read_batches(self.outputs(self.baseline, inputs))
        return [pair[0] for pair in self.build.data.pairs(outputs, [None] * len(outputs))]


def worst_measurement(measurements: Sequence[Measurement], percentile: float) -> Measurement:
    """Return the slowest of a file's measurements at several sizes, with the largest peak memory of all."""
    slowest = max(measurements, key=lambda found: latency_interval_ms(found, percentile).high)
    peaks = [found.memory for found in measurements if found.memory is not None]
    if len(peaks) < len(measurements):
        return slowest
    return msgspec.structs.replace(slowest, memory=max(peaks, key=lambda memory: memory.peak_bytes))


def drop_interval(
    baseline: NDArray[np.float64] | None, samples: NDArray[np.float64] | None
) -> tuple[float, float] | None:
    """Return the paired 95 % interval of the score drop, or None if there are no scores of single samples."""
    if baseline is None or samples is None:
        return None
    interval = paired_drop_interval(baseline, samples)
    return interval.low, interval.high


def timed(seconds: dict[str, float], name: str, function: Callable[[], Any]) -> Any:
    """Call ``function`` and add its wall time to ``seconds``."""
    start = time.perf_counter()
    try:
        return function()
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

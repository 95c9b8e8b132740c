"""Measurement, score and comparison of one artifact, each looked up in the ledger first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.bench.changes import layer_changes
from edgeopt.bench.compare import compare
from edgeopt.bench.measure import measure
from edgeopt.bench.nodes import DEFAULT_PROFILING_TURNS, LONG_PROFILING_TURNS, FileTime, ProfilingTurns, profile_nodes
from edgeopt.bench.outputs import read_batches, run_model
from edgeopt.errors import CannotProfileError
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.device_calibration import add_estimate
from edgeopt.records.codec import digest, measurement_key
from edgeopt.records.measurement import Comparison, Measurement, NodeChange
from edgeopt.records.trial import Score
from edgeopt.statistics import is_complete, paired_drop_interval


class Evaluator:
    """Weighs the artifacts of one build. Nothing here may run while a training does, but ``outputs`` and ``score``.

    Args:
        build: The build.
        baseline: SHA-256 of the baseline's file.
    """

    def __init__(self, build: Build, baseline: str) -> None:
        self.build = build
        self.baseline = baseline

    def _measurement_key(self, sha256: str) -> str:
        build = self.build
        runtime = build.environment.onnxruntime
        key = measurement_key(sha256, build.device, runtime, build.profile, build.budget.batch_size)
        key = digest((key, build.calibration)) if build.calibration else key
        return digest((key, build.allow_fallback)) if build.allow_fallback else key

    @property
    def _computed_by(self) -> tuple[str, str, tuple[str, ...]]:
        """What outputs hang on beside the file: a score is the device's own (int8 differs between processors)."""
        return self.build.device.id, self.build.environment.onnxruntime, self.build.profile.providers

    def measurement(self, sha256: str) -> Measurement:
        """Return the file's measurement on the build's device; one that ended early for another limit is made anew."""
        build, budget = self.build, self.build.budget
        key = digest((self._measurement_key(sha256), budget.latency_percentile))
        found = build.ledger.get("measurement", key, Measurement)
        if found is None or not is_complete(found, budget.latency_percentile, budget.max_latency_ms):
            found = run_step(
                "measure",
                measure,
                build.workspace.artifact(sha256),
                build.connection,
                build.profile,
                batch_size=build.budget.batch_size,
                allow_fallback=build.allow_fallback,
                inputs=build.data.timing_inputs(build.budget.batch_size),
                kind=build.device.kind,
                percentile=budget.latency_percentile,
                max_latency_ms=budget.max_latency_ms,
                progress=lambda _: None,
            )
            if build.calibration is not None:
                found = run_step("estimate", add_estimate, found, build.workspace.artifact(sha256), build.profile,
                                 build.calibration, budget.latency_percentile,
                                 build.data.timing_inputs(budget.batch_size))  # fmt: skip
            build.ledger.put("measurement", key, found)
        return found

    def comparison(self, sha256: str, against: str | None = None) -> Comparison:
        """Return the interleaved A/B of a file against another, by default the baseline."""
        build = self.build
        against = against or self.baseline
        key = digest((self._measurement_key(sha256), self._measurement_key(against)))
        found = build.ledger.get("comparison", key, Comparison)
        if found is None:
            found = run_step(
                "compare",
                compare,
                build.workspace.artifact(sha256),
                build.workspace.artifact(against),
                build.connection,
                build.profile,
                batch_size=build.budget.batch_size,
                allow_fallback=build.allow_fallback,
                inputs=build.data.timing_inputs(build.budget.batch_size),
                seed=build.seed,
            )
            build.ledger.put("comparison", key, found)
        return found

    def changes(self, sha256: str, against: str) -> tuple[NodeChange, ...]:
        """Return what the layers of an integer file lost and gained against its float form, largest loss first.

        Empty on a device that cannot tell the times of single nodes.
        """
        profiles = self._profiles(
            [self.build.workspace.artifact(name) for name in (against, sha256)], LONG_PROFILING_TURNS
        )
        return tuple(layer_changes(profiles[0].nodes, profiles[1].nodes)) if profiles else ()

    def times(self, files: Sequence[Path]) -> tuple[float, ...]:
        """Return the time of each of several files that took turns, in ns; fewer where they took too long.

        Empty on a device that cannot tell the times of single nodes.
        """
        return tuple(one.ns for one in self._profiles(files, DEFAULT_PROFILING_TURNS))

    def _profiles(self, files: Sequence[Path], turns: ProfilingTurns) -> list[FileTime]:
        build, batch = self.build, self.build.budget.batch_size
        try:
            return run_step("profile", profile_nodes, files, build.connection, build.profile, batch,
                            build.allow_fallback, build.data.timing_inputs(batch), turns)  # fmt: skip
        except CannotProfileError:
            return []

    def outputs(self, sha256: str, inputs: Path) -> Path:
        """Run a file on stored inputs and return the file of its outputs, which the caller removes."""
        build = self.build
        target = build.workspace.folder("arrays") / f"outputs-{sha256[:16]}-{inputs.stem}.npz"
        run_step(
            "evaluate",
            run_model,
            build.workspace.artifact(sha256),
            inputs,
            target,
            build.connection,
            build.profile,
            allow_fallback=build.allow_fallback,
        )
        return target

    def score(self, sha256: str) -> Score:
        """Return the file's score on the selection batches, and its drop against the baseline over the same samples."""
        key = digest(("score", sha256, self.baseline, self.build.fingerprint, *self._computed_by))
        found = self.build.ledger.get("score", key, Score)
        if found is None:
            value, samples = self.evaluate(sha256, self.build.data.eval_file, self.build.data.targets)
            base_value, base_samples = (
                (value, samples)
                if sha256 == self.baseline
                else self.evaluate(self.baseline, self.build.data.eval_file, self.build.data.targets)
            )
            found = Score(
                value=value,
                drop=base_value - value,
                drop_ci95=drop_interval(base_samples, samples),
                samples=self.build.data.samples,
            )
            self.build.ledger.put("score", key, found)
        return found

    def evaluate(self, sha256: str, inputs: Path, targets: Sequence[Any]) -> tuple[float, NDArray[np.float64] | None]:
        """Return a file's score and its scores of single samples; the latter are kept in the workspace."""
        build = self.build
        key = digest(("samples", sha256, inputs.name, *self._computed_by, self.baseline if not targets else ""))
        kept = build.workspace.folder("arrays") / f"samples-{key}.npz"
        if kept.exists():
            with np.load(kept, allow_pickle=False) as stored:
                return float(stored["score"]), stored["samples"] if "samples" in stored.files else None
        outputs = self.outputs(sha256, inputs)
        pairs = build.data.pairs(read_batches(outputs), targets or self.reference(inputs))
        value, samples = build.data.score(pairs), build.data.sample_scores(pairs)
        partial = kept.with_suffix(".partial.npz")
        if samples is None:
            np.savez(partial, score=np.float64(value))
        else:
            np.savez(partial, score=np.float64(value), samples=samples)
        partial.replace(kept)
        outputs.unlink(missing_ok=True)
        return value, samples

    def reference(self, inputs: Path) -> list[Any]:
        """Return the baseline's own outputs, where a given file without labels is judged by agreement."""
        outputs = read_batches(self.outputs(self.baseline, inputs))
        return [pair[0] for pair in self.build.data.pairs(outputs, [None] * len(outputs))]


def drop_interval(
    baseline: NDArray[np.float64] | None, samples: NDArray[np.float64] | None
) -> tuple[float, float] | None:
    """Return the paired 95 % interval of the drop, or None where there are no scores of single samples."""
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

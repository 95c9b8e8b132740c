"""``choice.json``: the one structure that the text, the page and the JSON are rendered from.

A ``Choice`` with its raw samples goes in; statistics are computed here, nothing is rounded. Within one schema, fields
are only added, and a reader skips fields that it does not know, so an old reader reads a newer file. If a field is
renamed or removed, the schema gets the next number, and readers refuse other numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal, TypeVar

import msgspec

import edgeopt
from edgeopt.errors import DataError
from edgeopt.records.budget import Budget, Limit
from edgeopt.records.choice import (
    Choice,
    ExpectedDrop,
    FailedTrainings,
    Infeasible,
    Miss,
    NearMiss,
    OrtFile,
    TestScores,
    Verdict,
)
from edgeopt.records.codec import to_json
from edgeopt.records.measurement import Comparison, DeviceInfo, Environment, Estimate, Measurement
from edgeopt.records.profile import Runtime
from edgeopt.records.recipe import Quantize, Recipe
from edgeopt.records.scoring import ScoreDirection, ScoreKind
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import AnswerChanges, Failed, FailureKind, Measured, Parity, Trial
from edgeopt.report.parts import Latency, LatencyComparison, LayerChange, NodeSensitivity, Part, Span
from edgeopt.statistics import comparison_ratio, find_noise, latency_interval_ms, load_ms, verdict

_SCHEMA: Literal["edgeopt/choice-2"] = "edgeopt/choice-2"

R = TypeVar("R", bound=Part)


class TrialPart(Part, frozen=True, kw_only=True):
    """One trial; fields that a failed trial does not have are null."""

    number: int
    recipe: Recipe
    status: Literal["measured", "failed"]
    stage: str | None = None
    reason: str | None = None
    failure: FailureKind | None = None
    """Of a failed trial; ``crashed`` says nothing about its network."""
    onnx: str | None = None
    """Path in the workspace."""
    sha256: str | None = None
    size_bytes: int | None = None
    download_bytes: int | None = None
    parameters: int | None = None
    nonzero_parameters: int | None = None
    macs: int | None = None
    weight_types: tuple[str, ...] = ()
    """Of the stored weights, the most frequent first."""
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    """Samples a second at the measured batch size and the median latency."""
    throughput_ci95: Span | None = None
    """Only if the budget has a limit on it."""
    batch_size: int | None = None
    against_baseline: LatencyComparison | None = None
    against_float: LatencyComparison | None = None
    """An int8 file against its float counterpart."""
    changes_against_float: tuple[LayerChange, ...] = ()
    """If it is slower than that: the time that its layers lost and gained, largest loss first."""
    sensitivity: tuple[NodeSensitivity, ...] = ()
    """Of a mixed-precision trial."""
    parent: int | None = None
    """The trial that a refined trial was made from, in the same precision."""
    against_parent: LatencyComparison | None = None
    full_int8: int | None = None
    """For an int8 file with a float prefix: the trial that is int8 from the first layer."""
    against_full_int8: LatencyComparison | None = None
    load_ms: float | None = None
    peak_memory_bytes: int | None = None
    score: float | None = None
    score_drop: float | None = None
    score_drop_ci95: Span | None = None
    answers: AnswerChanges | None = None
    """How its answers differ from the baseline's, if a limit is about them."""
    score_samples: int | None = None
    score_judged: int | None = None
    """Samples that count, because they have a label; null if all do."""
    score_direction: ScoreDirection = "higher"
    """Whether a higher or a lower score is better; a drop is always how much worse."""
    providers: dict[str, int] | None = None
    misses: tuple[Miss, ...] | None = None
    pays: bool | None = None
    """False if an A/B bars it from winning; see ``edgeopt.records.choice.Verdict``."""
    processes: int | None = None
    runs: int | None = None
    contended_processes: int | None = None
    noise: dict[str, float] | None = None
    """Kinds of disturbance of the timing, and how large each is; see ``edgeopt.statistics.find_noise``."""
    exporter: str | None = None
    opset: int | None = None
    ir_version: int | None = None
    parities: tuple[Parity, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: dict[str, float]

    @property
    def latency_at_limit_ms(self) -> float | None:
        """Latency at the budget's percentile."""
        return None if self.latency_ms is None else self.latency_ms.limit


class Document(Part, frozen=True, kw_only=True):
    """The decision, and every trial."""

    schema: Literal["edgeopt/choice-2"]
    task: str
    target: str
    device: DeviceInfo
    environment: Environment | None
    """Of the baseline's measurement; null if it failed."""
    threads: int | None
    runtime: Runtime | None = None
    """Settings of the sessions: threads, affinity, spinning, arena, graph level."""
    estimate: Estimate | None = None
    """Of the baseline, if latencies are estimated: the calibration, and how accurate it is."""
    proven_on_target: bool
    budget: Budget
    baseline: TrialPart
    winner: TrialPart | None
    binding: tuple[Limit, ...]
    trials: tuple[TrialPart, ...]
    pareto_front: tuple[int, ...]
    infeasible: Infeasible | None
    test: TestScores | None
    seconds: dict[str, float]
    sparsity: SparsityCurve | None = None
    """Loss against the share of weights that are not zero."""
    notes: tuple[str, ...] = ()
    """Things that the search did not try, and why."""
    warnings: tuple[str, ...] = ()
    """Reasons why the scores may mean nothing."""
    score_kind: ScoreKind | None = None
    """What the score is; null if the task scores itself."""
    teacher: str | None = None
    """The ``.onnx`` file that taught the trained networks; null if the original network did."""
    given_sha256: str | None = None
    """Of the given ``.onnx`` as it was read; null for a PyTorch task."""
    failed_trainings: FailedTrainings | None = None
    """Null if no training failed."""
    near_misses: tuple[NearMiss, ...] = ()
    """Smaller trials that miss a single limit."""
    expected: ExpectedDrop | None = None
    """The winner's drop on other data, corrected for the choice among many files."""
    ended_early: str | None = None
    """Why the search ended before all its rounds; null if it did not, or if only the time limit ended it."""
    ort: OrtFile | None = None
    """The winner in ONNX Runtime's own format; null if the bundle has none."""

    def trial(self, number: int) -> TrialPart:
        """Return the trial of that number."""
        return next(trial for trial in self.trials if trial.number == number)


def build_document(choice: Choice) -> Document:
    """Compute every statistic that the report shows from the raw samples of a choice."""
    verdicts = {verdict.trial: verdict for verdict in choice.verdicts}
    trials = {trial.number: _trial_part(trial, verdicts, choice.budget) for trial in choice.trials}
    first = choice.trial(0).outcome
    measurement = first.measurement if isinstance(first, Measured) else None
    return Document(
        schema=_SCHEMA,
        task=choice.task,
        target=choice.target,
        device=choice.device,
        environment=measurement.environment if measurement else None,
        threads=measurement.threads if measurement else None,
        runtime=measurement.runtime if measurement else None,
        estimate=measurement.estimate if measurement else None,
        proven_on_target=choice.proven_on_target,
        budget=choice.budget,
        baseline=trials[0],
        winner=None if choice.winner is None else trials[choice.winner],
        binding=choice.binding,
        trials=tuple(trials.values()),
        pareto_front=choice.pareto_front,
        infeasible=choice.infeasible,
        test=choice.test,
        near_misses=choice.near_misses,
        expected=choice.expected,
        seconds=choice.seconds,
        sparsity=choice.sparsity,
        notes=choice.notes,
        warnings=choice.warnings,
        score_kind=choice.score_kind,
        teacher=choice.teacher,
        given_sha256=choice.given_sha256,
        failed_trainings=choice.failed_trainings,
        ended_early=choice.ended_early,
        ort=choice.ort,
    )


def _trial_part(trial: Trial, verdicts: dict[int, Verdict], budget: Budget) -> TrialPart:
    match trial.outcome:
        case Failed(stage=stage, reason=reason, kind=kind):
            return TrialPart(
                number=trial.number,
                recipe=trial.recipe,
                status="failed",
                stage=stage,
                reason=reason,
                failure=kind,
                seconds=trial.seconds,
            )
        case Measured() as outcome:
            return _measured_part(trial, outcome, verdicts[trial.number], budget)


def _measured_part(trial: Trial, outcome: Measured, trial_verdict: Verdict, budget: Budget) -> TrialPart:
    artifact, measurement, score = outcome.artifact, outcome.measurement, outcome.score
    latency = _latency(measurement, budget.latency_percentile)
    parent, full_int8 = outcome.against_parent, outcome.against_full_int8
    return TrialPart(
        number=trial.number,
        recipe=trial.recipe,
        status="measured",
        onnx=f"artifacts/{artifact.sha256}.onnx",
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        download_bytes=artifact.download_bytes,
        parameters=artifact.parameters,
        nonzero_parameters=artifact.nonzero_parameters,
        macs=artifact.macs,
        weight_types=artifact.weight_types,
        latency_ms=latency,
        throughput_per_s=1e3 * measurement.batch_size / latency.p50,
        throughput_ci95=None if budget.min_throughput_per_s is None else _throughput_interval(measurement),
        batch_size=measurement.batch_size,
        against_baseline=_compare(outcome.against_baseline),
        against_float=_compare(outcome.against_float),
        changes_against_float=tuple(
            LayerChange(
                operator=change.operator,
                shape=change.shape,
                nodes=change.nodes,
                float_ms=change.against_ns / 1e6,
                ms=change.ns / 1e6,
            )
            for change in outcome.changes_against_float
        ),
        sensitivity=_sensitivity(trial.recipe, outcome),
        parent=None if parent is None else parent.trial,
        against_parent=None if parent is None else _compare(parent.comparison),
        full_int8=None if full_int8 is None else full_int8.trial,
        against_full_int8=None if full_int8 is None else _compare(full_int8.comparison),
        load_ms=load_ms(measurement),
        peak_memory_bytes=None if measurement.memory is None else measurement.memory.peak_bytes,
        score=_finite(score.value),
        score_drop=_finite(score.drop),
        score_drop_ci95=score.drop_ci95,
        answers=score.answers,
        score_samples=score.samples,
        score_judged=score.judged,
        score_direction=score.direction,
        providers=measurement.providers,
        misses=trial_verdict.misses,
        pays=trial_verdict.pays,
        processes=len(measurement.timings),
        runs=sum(len(timing.wall_ns) for timing in measurement.timings),
        contended_processes=sum(timing.contended for timing in measurement.timings),
        noise={str(kind): ratio for kind, ratio in find_noise(measurement, budget.latency_percentile).items()},
        exporter=artifact.exporter,
        opset=artifact.opset,
        ir_version=artifact.ir_version,
        parities=artifact.parities,
        notes=artifact.notes,
        seconds=trial.seconds,
    )


def _sensitivity(recipe: Recipe, outcome: Measured) -> tuple[NodeSensitivity, ...]:
    float_nodes = {name for step in recipe.graph_steps if isinstance(step, Quantize) for name in step.float_nodes}
    return tuple(
        NodeSensitivity(
            node=ranked.node,
            snr_db=ranked.snr_db,
            cost_ratio=ranked.cost_ratio,
            stays_float=ranked.node in float_nodes,
        )
        for ranked in outcome.ranking
    )


def _latency(measurement: Measurement, percentile: int) -> Latency:
    limit = latency_interval_ms(measurement, percentile)
    if measurement.estimate is not None:
        p50, p90, p99 = (latency_interval_ms(measurement, at).value for at in (50, 90, 99))
        return Latency(p50=p50, p90=p90, p99=p99, limit=limit.value, limit_ci95=(limit.low, limit.high), estimated=True)
    cuts = quantiles((ns for timing in measurement.timings for ns in timing.wall_ns), n=100, method="inclusive")
    p50, p90, p99 = (cuts[at - 1] / 1e6 for at in (50, 90, 99))
    return Latency(p50=p50, p90=p90, p99=p99, limit=limit.value, limit_ci95=(limit.low, limit.high))


def _throughput_interval(measurement: Measurement) -> Span:
    median = latency_interval_ms(measurement, 50)
    return 1e3 * measurement.batch_size / median.high, 1e3 * measurement.batch_size / median.low


def _compare(comparison: Comparison | None) -> LatencyComparison | None:
    if comparison is None:
        return None
    ratio = comparison_ratio(comparison)
    return LatencyComparison(latency_ratio=ratio.value, ci95=(ratio.low, ratio.high), verdict=verdict(comparison))


def _finite(value: float) -> float | None:
    """Replace NaN and infinity by null, because JSON has neither."""
    return value if math.isfinite(value) else None


def encode(document: Part | dict[str, Any]) -> bytes:
    """Write a document as JSON for people and programs: indented, with a newline at the end."""
    return msgspec.json.format(to_json(document), indent=2) + b"\n"


def read_document(path: Path) -> Document:
    """Read a ``choice.json``.

    Raises:
        DataError: see ``read_part``.
    """
    return read_part(path, Document, _SCHEMA)


class _Header(Part, frozen=True, kw_only=True):
    """The part of a file that says how to read the rest."""

    schema: str


def read_part(path: Path, kind: type[R], schema: str) -> R:
    """Read a JSON file of a bundle.

    Args:
        path: The file.
        kind: Its contents.
        schema: The schema that ``kind`` describes, such as ``edgeopt/choice-2``.

    Raises:
        DataError: the file is missing, has another schema, or is damaged; the message names the field.
    """
    try:
        content = path.read_bytes()
        found = msgspec.json.decode(content, type=_Header).schema
        if found != schema and found.rpartition("-")[0] == schema.rpartition("-")[0]:
            raise DataError(
                f"{path} has the format {found}, but edgeopt {edgeopt.__version__} reads {schema}: build again, or use "
                "the edgeopt version that wrote it."
            )
        return msgspec.json.decode(content, type=kind)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Name a folder that `edgeopt build` wrote."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not an {schema} document: {error}. Build again.") from error

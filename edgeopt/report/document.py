"""``choice.json``: the one structure that the text, the page and the JSON are rendered from.

A ``Choice`` with its raw samples goes in; statistics are computed here, nothing is rounded. Fields are only ever added
to the schema, and a reader skips those it does not know, so an old reader reads a newer file.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import quantiles
from typing import Literal

import msgspec

from edgeopt.errors import DataError
from edgeopt.records.budget import Budget, Limit
from edgeopt.records.choice import Choice, Infeasible, Miss, TestScores, Verdict
from edgeopt.records.codec import to_json
from edgeopt.records.measurement import Comparison, DeviceInfo, Environment, Estimate, Measurement
from edgeopt.records.profile import Runtime
from edgeopt.records.recipe import Quantize, Recipe
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import Failed, Measured, Parity, Trial
from edgeopt.statistics import comparison_ratio, latency_interval_ms, load_ms, noise, verdict

_SCHEMA: Literal["edgeopt/choice-1"] = "edgeopt/choice-1"

Span = tuple[float, float]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a document; unlike a record, it skips fields that a later version added."""


class Latency(Part, frozen=True, kw_only=True):
    """Wall time of one run, over all processes, in ms."""

    p50: float
    p90: float
    p99: float
    limit: float
    """At the budget's percentile."""
    limit_ci95: Span
    estimated: bool = False
    """Foretold for a target that was not there; see ``Document.estimate``."""


class Against(Part, frozen=True, kw_only=True):
    """An interleaved A/B."""

    latency_ratio: float
    """This file's time over the other's: below 1 is faster."""
    ci95: Span
    verdict: Literal["faster", "slower", "no difference"]


class LayerChange(Part, frozen=True, kw_only=True):
    """Layers of one kind in float32 and in int8, by ONNX Runtime's profile."""

    operator: str
    shape: tuple[int, ...]
    """Of what they make."""
    nodes: tuple[int, int]
    """How many, in float32 and in int8."""
    float_ms: float
    ms: float


class Suffering(Part, frozen=True, kw_only=True):
    """A node of the ranking that a mixed form's float nodes are the first of."""

    node: str
    snr_db: float
    """Signal to noise at the outputs where this node alone is in int8."""
    cost_ratio: float
    """Its share of the bytes and of the work."""
    stays_float: bool


class TrialPart(Part, frozen=True, kw_only=True):
    """One trial; what a failed one does not have is null."""

    number: int
    recipe: Recipe
    status: Literal["measured", "failed"]
    stage: str | None = None
    reason: str | None = None
    onnx: str | None = None
    """Path in the workspace."""
    sha256: str | None = None
    size_bytes: int | None = None
    download_bytes: int | None = None
    parameters: int | None = None
    nonzero_parameters: int | None = None
    macs: int | None = None
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    """Samples a second at the measured batch size and the median latency."""
    throughput_ci95: Span | None = None
    """Where the budget has a limit on it."""
    batch_size: int | None = None
    against_baseline: Against | None = None
    against_float: Against | None = None
    """An int8 file against its network in float32."""
    changes_against_float: tuple[LayerChange, ...] = ()
    """Where it is slower than that: what its layers lost and gained, largest loss first."""
    sensitivity: tuple[Suffering, ...] = ()
    """Of a mixed form."""
    parent: int | None = None
    """The trial that a sparse or low-rank one was made of, in the same precision."""
    against_parent: Against | None = None
    plain: int | None = None
    """Of an int8 file whose first layers are float, for time: the trial that is int8 from there on."""
    against_full_int8: Against | None = None
    load_ms: float | None = None
    peak_memory_bytes: int | None = None
    score: float | None = None
    score_drop: float | None = None
    score_drop_ci95: Span | None = None
    score_samples: int | None = None
    providers: dict[str, int] | None = None
    misses: tuple[Miss, ...] | None = None
    pays: bool | None = None
    """False where the A/B bars it from winning; see ``records.choice.Verdict``."""
    processes: int | None = None
    runs: int | None = None
    contended_processes: int | None = None
    noise: dict[str, float] | None = None
    """What disturbed the timing, and how much; see ``edgeopt.statistics.noise``."""
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

    schema: Literal["edgeopt/choice-1"]
    task: str
    target: str
    device: DeviceInfo
    environment: Environment | None
    """Of the baseline's measurement; null where it failed."""
    threads: int | None
    runtime: Runtime | None = None
    """How sessions ran: threads, affinity, spinning, arena, graph level."""
    estimate: Estimate | None = None
    """Of the baseline, where latencies are estimated: from which calibration, and how sure that is."""
    proven_on_target: bool
    budget: Budget
    baseline: TrialPart
    winner: TrialPart | None
    binding: tuple[Limit, ...]
    trials: tuple[TrialPart, ...]
    front: tuple[int, ...]
    infeasible: Infeasible | None
    test: TestScores | None
    seconds: dict[str, float]
    sparsity: SparsityCurve | None = None
    """Loss against the share of weights that are not zero."""
    notes: tuple[str, ...] = ()
    """What the search did not try, and why."""
    teacher: str | None = None
    """The ``.onnx`` file that taught what was trained; null where the original network did."""

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
        front=choice.front,
        infeasible=choice.infeasible,
        test=choice.test,
        seconds=choice.seconds,
        sparsity=choice.sparsity,
        notes=choice.notes,
        teacher=choice.teacher,
    )


def _trial_part(trial: Trial, verdicts: dict[int, Verdict], budget: Budget) -> TrialPart:
    match trial.outcome:
        case Failed(stage=stage, reason=reason):
            return TrialPart(
                number=trial.number,
                recipe=trial.recipe,
                status="failed",
                stage=stage,
                reason=reason,
                seconds=trial.seconds,
            )
        case Measured() as outcome:
            return _measured_part(trial, outcome, verdicts[trial.number], budget)


def _measured_part(trial: Trial, outcome: Measured, judged: Verdict, budget: Budget) -> TrialPart:
    artifact, measurement, score = outcome.artifact, outcome.measurement, outcome.score
    latency = _latency(measurement, budget.latency_percentile)
    parent, plain = outcome.against_parent, outcome.against_full_int8
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
        latency_ms=latency,
        throughput_per_s=1e3 * measurement.batch_size / latency.p50,
        throughput_ci95=None if budget.min_throughput_per_s is None else _throughput_interval(measurement),
        batch_size=measurement.batch_size,
        against_baseline=_against(outcome.against_baseline),
        against_float=_against(outcome.against_float),
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
        against_parent=None if parent is None else _against(parent.comparison),
        plain=None if plain is None else plain.trial,
        against_full_int8=None if plain is None else _against(plain.comparison),
        load_ms=load_ms(measurement),
        peak_memory_bytes=None if measurement.memory is None else measurement.memory.peak_bytes,
        score=_finite(score.value),
        score_drop=_finite(score.drop),
        score_drop_ci95=score.drop_ci95,
        score_samples=score.samples,
        providers=measurement.providers,
        misses=judged.misses,
        pays=judged.pays,
        processes=len(measurement.timings),
        runs=sum(len(timing.wall_ns) for timing in measurement.timings),
        contended_processes=sum(timing.contended for timing in measurement.timings),
        noise={str(kind): ratio for kind, ratio in noise(measurement, budget.latency_percentile).items()},
        exporter=artifact.exporter,
        opset=artifact.opset,
        ir_version=artifact.ir_version,
        parities=artifact.parities,
        notes=artifact.notes,
        seconds=trial.seconds,
    )


def _sensitivity(recipe: Recipe, outcome: Measured) -> tuple[Suffering, ...]:
    floats = {name for step in recipe.graph_steps if isinstance(step, Quantize) for name in step.float_nodes}
    return tuple(
        Suffering(node=noise.node, snr_db=noise.snr_db, cost_ratio=noise.cost_ratio, stays_float=noise.node in floats)
        for noise in outcome.ranking
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


def _against(comparison: Comparison | None) -> Against | None:
    if comparison is None:
        return None
    ratio = comparison_ratio(comparison)
    return Against(latency_ratio=ratio.value, ci95=(ratio.low, ratio.high), verdict=verdict(comparison))


def _finite(value: float) -> float | None:
    """JSON has no NaN: what is not a number is null."""
    return value if math.isfinite(value) else None


def encode(document: Part) -> bytes:
    """Write a document as JSON for people and programs: indented, with a line end."""
    return msgspec.json.format(to_json(document), indent=2) + b"\n"


def read_document(path: Path) -> Document:
    """Read a ``choice.json``.

    Raises:
        DataError: the file is missing, or is no document of this schema; the message names the field.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Document)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. A folder that `edgeopt build` wrote holds one."
        ) from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is no {_SCHEMA} document: {error}. Build it again.") from error

"""Builders of small real records; a test names only what it is about."""

from typing import Any

import msgspec

from edgeopt.records.budget import Budget
from edgeopt.records.choice import Choice, TestScores
from edgeopt.records.measurement import (
    Comparison,
    DeviceInfo,
    DeviceKind,
    Environment,
    Estimate,
    Measurement,
    Memory,
    NodeChange,
    PercentileEstimate,
    Timing,
)
from edgeopt.records.profile import Profile, TimingRule
from edgeopt.records.quantization import NodeNoise
from edgeopt.records.recipe import (
    Compact,
    Distill,
    GraphStep,
    Importance,
    LowRank,
    Prune,
    Quantize,
    Recipe,
    Simplify,
    Sparsify,
    TorchStep,
)
from edgeopt.records.trial import AgainstTrial, Artifact, Failed, Measured, Parity, Score, Trial

A_RULE = TimingRule(
    processes=5, warmup_runs=10, warmup_seconds=0.3, min_runs=50, min_seconds=1.0, max_seconds=10.0
)  # what the shipped profiles ask for
RUNS = 20  # a process, in these tests
A_QUANTIZE = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=256)
A_DISTILL = Distill(
    epochs=8,
    optimizer="sgd",
    learning_rate=0.05,
    weight_decay=5e-4,
    warmup_ratio=0.05,
    temperature=4.0,
    kl_weight=0.7,
    mse_weight=0.1,
    hard_weight=0.2,
)


def a_budget(
    *,
    max_latency_ms: float | None = 1.0,
    latency_percentile: int = 90,
    batch_size: int = 1,
    min_throughput_per_s: float | None = None,
    max_peak_memory_bytes: int | None = 10_000_000,
    max_size_bytes: int | None = 2_000_000,
    size_metric: str = "file",
    min_score: float | None = None,
    max_score_drop: float | None = 0.01,
    **others: Any,
) -> Budget:
    """Return limits that ``a_trial()`` keeps."""
    return Budget(
        max_latency_ms=max_latency_ms,
        latency_percentile=latency_percentile,
        batch_size=batch_size,
        min_throughput_per_s=min_throughput_per_s,
        max_peak_memory_bytes=max_peak_memory_bytes,
        max_size_bytes=max_size_bytes,
        size_metric=size_metric,
        min_score=min_score,
        max_score_drop=max_score_drop,
        **others,
    )


def a_profile(*, name: str = "phone", stand_in: bool = True, limits: Budget | None = None) -> Profile:
    """Return a phone that this machine stands in for."""
    return Profile(
        name=name,
        title="a phone",
        device="local:",
        stand_in=stand_in,
        providers=("CPUExecutionProvider",),
        threads=1,
        allow_spinning=False,
        memory_arena=True,
        precisions=("int8", "fp32"),
        activation_type="uint8",
        channel_step=8,
        max_opset=20,
        max_ir=9,
        min_onnxruntime="1.17",
        timing=A_RULE,
        limits=limits or a_budget(),
    )


def a_device(*, kind: DeviceKind = "measured") -> DeviceInfo:
    """Return the machine that runs the tests."""
    return DeviceInfo(uri="local:", kind=kind, id="x86_64-test")


def an_environment() -> Environment:
    """Return a machine without VNNI."""
    return Environment(
        processor="Test Processor 3000",
        features=("avx2",),
        cores=2,
        memory_bytes=8_000_000_000,
        system="Linux 6.1",
        python="3.11.2",
        onnxruntime="1.32.0",
        numpy="2.4.0",
        governor="performance",
        temperature_c=None,
    )


def a_timing(latency_ms: float = 0.2, *, spread: float = 0.02, process: int = 0, contended: bool = False) -> Timing:
    """Return one process with runs evenly within ``spread`` above and below; processes differ by a tenth of that."""
    center = latency_ms * 1e6 * (1 + spread * (process - 2) / 10)
    wall = tuple(round(center * (1 + spread * (2 * run / (RUNS - 1) - 1))) for run in range(RUNS))
    return Timing(
        wall_ns=wall,
        cpu_ns=wall,
        warmup_runs=10,
        load_ns=12_000_000,
        involuntary_switches=0,
        pressure_ratio=0.0,
        contended=contended,
    )


def a_memory(peak_bytes: int = 4_000_000) -> Memory:
    """Return peaks, the larger of which is ``peak_bytes``."""
    return Memory(
        load_peak_bytes=peak_bytes,
        run_peak_bytes=peak_bytes - 500_000,
        default_load_peak_bytes=2 * peak_bytes,
        default_run_peak_bytes=2 * peak_bytes - 500_000,
        device_peak_bytes=None,
    )


def a_measurement(
    *,
    sha256: str = "ab" * 32,
    latency_ms: float = 0.2,
    spread: float = 0.02,
    batch_size: int = 1,
    memory_bytes: int | None = 4_000_000,
    device: DeviceInfo | None = None,
    contended: bool = False,
) -> Measurement:
    """Return five processes of twenty runs."""
    return Measurement(
        sha256=sha256,
        batch_size=batch_size,
        timings=tuple(a_timing(latency_ms, spread=spread, process=i, contended=contended) for i in range(5)),
        memory=None if memory_bytes is None else a_memory(memory_bytes),
        providers={"CPUExecutionProvider": 31},
        threads=1,
        rule=A_RULE,
        device=device or a_device(),
        environment=an_environment(),
    )


def an_estimate(latency_ms: float = 0.2, error_ratio: float = 0.1) -> Estimate:
    """Return an estimate with equal percentiles and an interval of three times the error to each side."""
    center = 1e6 * latency_ms
    ends = {"value_ns": center, "low_ns": center * (1 - 3 * error_ratio), "high_ns": center * (1 + 3 * error_ratio)}
    return Estimate(
        calibration="cd" * 10,
        made_at="2026-11-24T16:00:00+00:00",
        device=DeviceInfo(uri="ssh://pi", kind="measured", id="aarch64-pi"),
        device_runtime="1.31.0",
        percentiles=tuple(PercentileEstimate(percentile=percentile, **ends) for percentile in (50, 90, 99)),
        networks=8,
        error_ratio=error_ratio,
        unseen_ratio=0.05,
    )


def a_comparison(*, time_ratio: float = 0.25, sha256: str = "ab" * 32, against_sha256: str = "00" * 32) -> Comparison:
    """Return ten alternating blocks of eight runs; this file takes ``time_ratio`` of the other's time, within 1 %."""

    def blocks(center_ns: float, phase: int) -> tuple[tuple[int, ...], ...]:
        wobble = [1 + 0.01 * (((7 * block + phase) % 11) / 5 - 1) for block in range(10)]
        return tuple(tuple(round(center_ns * w * (1 + 0.002 * run)) for run in range(8)) for w in wobble)

    return Comparison(
        sha256=sha256,
        against_sha256=against_sha256,
        blocks_ns=blocks(400_000 * time_ratio, 0),
        against_blocks_ns=blocks(400_000, 4),
        clock="cpu",
    )


def a_recipe(*, pruned: bool = False, int8: bool = False) -> Recipe:
    """Return a recipe that simplifies, and prunes or quantizes if asked."""
    prune = Prune(importance=Importance(), widths={"stem": 16})
    torch_steps: tuple[TorchStep, ...] = (prune, A_DISTILL) if pruned else ()
    graph_steps: tuple[GraphStep, ...] = (Simplify(), A_QUANTIZE, Compact()) if int8 else (Simplify(), Compact())
    return Recipe(torch_steps=torch_steps, graph_steps=graph_steps, seed=0, parent=None)


def a_slower_int8_trial(number: int = 1) -> Trial:
    """Return a trial that is slower in int8 than in float32, because of two convolutions."""
    changes = (
        NodeChange(
            name="", operator="Conv → QLinearConv", shape=(1, 96, 28, 28), nodes=(2, 2), against_ns=1.08e5, ns=1.32e5
        ),
        NodeChange(name="", operator="Relu", shape=(1, 8, 14, 14), nodes=(1, 0), against_ns=4e3, ns=0.0),
    )
    return a_trial(number, recipe=a_recipe(int8=True), drop=0.0, float_ratio=1.2, changes_against_float=changes)


def a_derived_trial(number: int, step: LowRank | Sparsify, *, time_ratio: float = 1.0, **values: object) -> Trial:
    """Return a trial made from trial 1 by zeros or low rank, with its A/B against that trial."""
    trial = a_trial(number, **values)  # type: ignore[arg-type]
    assert isinstance(trial.outcome, Measured)
    against = AgainstTrial(trial=1, comparison=a_comparison(time_ratio=time_ratio))
    recipe = msgspec.structs.replace(trial.recipe, torch_steps=(step,), parent="trial 1's network")
    return msgspec.structs.replace(
        trial, recipe=recipe, outcome=msgspec.structs.replace(trial.outcome, against_parent=against)
    )


def a_trial_with_a_float_prefix(
    number: int = 2, *, full_int8: int = 1, time_ratio: float = 0.8, size_bytes: int = 905
) -> Trial:
    """Return an int8 trial with a float prefix, with its A/B against trial ``full_int8``."""
    trial = a_trial(number, size_bytes=size_bytes, recipe=a_recipe(int8=True), drop=0.0)
    assert isinstance(trial.outcome, Measured)
    against = AgainstTrial(trial=full_int8, comparison=a_comparison(time_ratio=time_ratio))
    return msgspec.structs.replace(trial, outcome=msgspec.structs.replace(trial.outcome, against_full_int8=against))


def a_mixed_trial(number: int = 1) -> Trial:
    """Return an int8 trial with two of its three nodes in float."""
    recipe = a_recipe(int8=True)
    step = msgspec.structs.replace(A_QUANTIZE, float_nodes=("stem", "head"))
    steps = tuple(step if isinstance(one, Quantize) else one for one in recipe.graph_steps)
    ranking = tuple(
        NodeNoise(node=node, snr_db=snr_db, cost_ratio=cost)
        for node, snr_db, cost in (("stem", 8.25, 0.01), ("head", 14.0, 0.05), ("body", 31.5, 0.94))
    )
    return a_trial(number, recipe=msgspec.structs.replace(recipe, graph_steps=steps), drop=0.0, ranking=ranking)


def an_artifact(
    *,
    number: int = 1,
    size_bytes: int = 900,
    download_bytes: int | None = None,
    parameters: int = 200,
    notes: tuple[str, ...] = (),
) -> Artifact:
    """Return one file, whose key and hash are the number of its trial."""
    return Artifact(
        key=f"{number:020x}",
        sha256=f"{number:064x}",
        size_bytes=size_bytes,
        download_bytes=size_bytes * 9 // 10 if download_bytes is None else download_bytes,
        parameters=parameters,
        nonzero_parameters=parameters,
        macs=parameters * 50,
        opset=18,
        ir_version=8,
        exporter="dynamo",
        parities=(Parity(stage="exported", max_abs_error=2e-6, max_rel_error=5e-7, tolerance=1e-4),),
        notes=notes,
    )


def a_trial(
    number: int = 1,
    *,
    size_bytes: int = 900,
    download_bytes: int | None = None,
    latency_ms: float = 0.2,
    spread: float = 0.02,
    memory_bytes: int | None = 4_000_000,
    score: float = 0.91,
    drop: float | None = None,
    drop_ci95: tuple[float, float] | None = None,
    baseline_score: float = 0.915,
    time_ratio: float | None = 0.25,
    parameters: int = 200,
    recipe: Recipe | None = None,
    batch_size: int = 1,
    contended: bool = False,
    notes: tuple[str, ...] = (),
    float_ratio: float | None = None,
    changes_against_float: tuple[NodeChange, ...] = (),
    ranking: tuple[NodeNoise, ...] = (),
) -> Trial:
    """Return a measured trial; ``drop`` follows from ``score`` if it is not given."""
    artifact = an_artifact(
        number=number, size_bytes=size_bytes, download_bytes=download_bytes, parameters=parameters, notes=notes
    )
    measurement = a_measurement(
        sha256=artifact.sha256,
        latency_ms=latency_ms,
        spread=spread,
        batch_size=batch_size,
        memory_bytes=memory_bytes,
        contended=contended,
    )
    against = None if time_ratio is None else a_comparison(time_ratio=time_ratio, sha256=artifact.sha256)
    return Trial(
        number=number,
        recipe=recipe or a_recipe(pruned=number > 0),
        outcome=Measured(
            artifact=artifact,
            measurement=measurement,
            score=Score(
                value=score,
                drop=baseline_score - score if drop is None else drop,
                drop_ci95=drop_ci95,
                samples=2000,
            ),
            against_baseline=against,
            against_float=None if float_ratio is None else a_comparison(time_ratio=float_ratio, sha256=artifact.sha256),
            changes_against_float=changes_against_float,
            ranking=ranking,
        ),
        seconds={"train": 12.0, "measure": 8.0},
    )


def a_baseline(
    *, size_bytes: int = 9000, latency_ms: float = 0.8, memory_bytes: int | None = 8_000_000, score: float = 0.915
) -> Trial:
    """Return trial 0: the trained model, exported and simplified."""
    return a_trial(
        0,
        size_bytes=size_bytes,
        latency_ms=latency_ms,
        memory_bytes=memory_bytes,
        score=score,
        drop=0.0,
        time_ratio=None,
        parameters=2000,
        recipe=a_recipe(),
    )


def a_failed_trial(number: int = 1, *, stage: str = "distill", reason: str = "the loss is not finite") -> Trial:
    """Return a trial that failed."""
    return Trial(
        number=number,
        recipe=a_recipe(pruned=True),
        outcome=Failed(stage=stage, reason=reason, trace="Traceback: ..."),
        seconds={"train": 3.0},
    )


def a_choice(
    trials: tuple[Trial, ...] | None = None,
    budget: Budget | None = None,
    *,
    task: str = "fashion",
    target: str = "phone",
    proven_on_target: bool = True,
) -> Choice:
    """Return the choice of ``select.choose`` among trials: by default a baseline, good ones, a bad and a failed one."""
    from edgeopt.select import choose

    if trials is None:
        trials = (
            a_baseline(),
            a_trial(1, size_bytes=2400, latency_ms=0.45, time_ratio=0.55, score=0.915, recipe=a_recipe(int8=True)),
            a_trial(2, recipe=a_recipe(pruned=True, int8=True)),
            a_trial(3, size_bytes=400, score=0.88, parameters=80, recipe=a_recipe(pruned=True, int8=True)),
            a_failed_trial(4),
        )
    return choose(
        trials,
        budget or a_budget(),
        task=task,
        target=target,
        device=a_device(kind="measured" if proven_on_target else "stand-in"),
        proven_on_target=proven_on_target,
        seconds={"train": 24.0, "measure": 40.0, "export": 6.0},
    )


def a_test_result(*, drop_ci95: tuple[float, float] | None = (0.001, 0.009)) -> TestScores:
    """Return scores on the test set, with a winner half a point below the baseline."""
    return TestScores(baseline_score=0.914, winner_score=0.909, drop_ci95=drop_ci95, samples=10_000)

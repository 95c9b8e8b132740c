"""What is tried after an int8 trial was compared with its float counterpart, on the device that counts.

Its first layers in float, if that is faster there; and float16 if no int8 variant pays, so that such a network becomes
smaller too. Each function returns a variant; the driver measures it.
"""

from __future__ import annotations

import msgspec

from edgeopt.errors import EdgeoptError
from edgeopt.graph.apply import write_float_prefix_files
from edgeopt.pipeline.artifacts.evaluator import Evaluator
from edgeopt.pipeline.artifacts.int8_variants import float_file
from edgeopt.pipeline.artifacts.networks import ExportedFile, StoredNetwork, export_network
from edgeopt.pipeline.artifacts.onnx_files import graph_steps, int8_steps, may_use_runtime_operators
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.search.candidate import Candidate, ScoredArtifact, Variant
from edgeopt.pipeline.search.trial_runner import TrialRunner, VariantMaker
from edgeopt.pipeline.search.variants.mixed_bits import bits_of_all, fewer_bits_of
from edgeopt.records.quantization import FloatPrefix
from edgeopt.records.recipe import DropUnseenRows, GraphStep, Quantize
from edgeopt.records.trial import Measured, Trial
from edgeopt.select.limits import pays
from edgeopt.statistics import comparison_ratio

ENOUGH_GAIN_RATIO = 0.5
"""Of the float counterpart's time: if int8 takes less, no float prefix is worth looking for."""
MAX_COST_RATIO = 0.98
"""Of the product of time and bytes: a float prefix that saves less is not tried."""


def may_fall_back(runner: TrialRunner, trial: Trial) -> bool:
    """Tell whether a fallback of a trial may be tried: an int8 trial of a known network, measured on the target."""
    measured = isinstance(trial.outcome, Measured) and runner.build.device_info.kind == "measured"
    return measured and trial.recipe.precision == "int8" and _network(runner, trial) is not None


def float_prefix_variant(runner: TrialRunner, trial: Trial) -> Variant | None:
    """Return a static int8 trial with its first layers in float: as many as make the product of time and bytes least.

    Returns:
        None if no prefix does, if int8 gains enough without, or if that variant was tried before. Weights that were
        trained for int8 stay as they were trained.
    """
    build, outcome = runner.build, trial.outcome
    step = next((step for step in trial.recipe.graph_steps if isinstance(step, Quantize)), None)
    assert isinstance(outcome, Measured)
    if step is None or step.calibration == "trained" or outcome.against_full_int8 is not None:
        return None
    if outcome.against_float is not None and comparison_ratio(outcome.against_float).value < ENOUGH_GAIN_RATIO:
        return None
    try:
        prefix = best_float_prefix(runner.evaluator, step, _exported(runner, trial), outcome.artifact.sha256)
    except EdgeoptError as error:
        build.progress("failed", f"int8 with its first layers in float: {as_failed(error).reason}")
        return None
    if not prefix.nodes:
        return None
    floats = (*step.float_nodes, *prefix.nodes)
    steps = int8_steps(msgspec.structs.replace(step, float_nodes=floats), build.profile)
    note = f"quantize: the first {len(prefix.nodes)} nodes are in float for speed, not for the score"
    return _new_variant(runner, trial, steps, (note,))


def float16_variant(runner: TrialRunner, trial: Trial) -> Variant | None:
    """Return a trial's network in float16; None if the target forbids it, int8 pays, or it was tried before."""
    build, outcome = runner.build, trial.outcome
    assert isinstance(outcome, Measured)
    if "fp16" not in build.profile.precisions or pays(trial, outcome, proven_on_target=True):
        return None
    return _new_variant(runner, trial, graph_steps("fp16", build.profile))


def fewer_bits_variant(runner: TrialRunner, trial: Trial) -> Variant | None:
    """Return an int8 trial's network with bits of its own for each weight; None if that is not smaller.

    If the trial is in a form whose weights all have the same bits, such as dynamic int8, another file of the network
    that keeps the limits begins.
    """
    network = _network(runner, trial)
    if trial.recipe.precision != "int8" or network is None or not isinstance(trial.outcome, Measured):
        return None
    spares = (one.recipe for one in runner.spares if _keeps_score_in_int8(runner, one, trial))
    recipes = (trial.recipe, *(one.recipe for one in _others_of(runner, trial)), *spares)
    begin = next((recipe for recipe in recipes if bits_of_all(recipe)), None)
    if begin is None:
        return None
    candidate = Candidate(steps=trial.recipe.torch_steps, parent=trial.recipe.parent)
    try:
        variant = fewer_bits_of(VariantMaker(runner, candidate, network, _exported(runner, trial)), begin)
    except EdgeoptError as error:
        runner.build.progress("failed", f"bits of its own for each weight: {as_failed(error).reason}")
        return None
    if variant is None or not isinstance(variant.made, ScoredArtifact) or runner.has_tried(variant.recipe):
        return None
    return variant if variant.made.artifact.size_bytes < trial.outcome.artifact.size_bytes else None


def _keeps_score_in_int8(runner: TrialRunner, spare: Variant, trial: Trial) -> bool:
    is_own = spare.recipe.is_of_network(trial.recipe) and spare.recipe.precision == "int8"
    return is_own and spare.keeps_score(runner.build.budget)


def _others_of(runner: TrialRunner, trial: Trial) -> list[Trial]:
    """Return the other int8 trials of a trial's network that keep every limit, the smallest first."""
    found = [
        (other.outcome.artifact.size_bytes, other)
        for other in runner.trials
        if other.number != trial.number
        and other.recipe.precision == "int8"
        and other.recipe.is_of_network(trial.recipe)
        and isinstance(other.outcome, Measured)
        and not runner.missed_limits(other.outcome)
    ]
    return [other for _, other in sorted(found, key=lambda pair: pair[0])]


def _new_variant(
    runner: TrialRunner, trial: Trial, steps: tuple[GraphStep, ...], reasons: tuple[str, ...] = ()
) -> Variant | None:
    """Return another variant of a trial's network; None if there is a trial of it."""
    candidate = Candidate(steps=trial.recipe.torch_steps, parent=trial.recipe.parent)
    steps = (*(step for step in trial.recipe.graph_steps if isinstance(step, DropUnseenRows)), *steps)
    if runner.has_tried(candidate.recipe(steps, runner.build.seed)):
        return None
    network = _network(runner, trial)
    assert network is not None
    return runner.make_variant(candidate, network, _exported(runner, trial), steps, {}, reasons)


def _network(runner: TrialRunner, trial: Trial) -> StoredNetwork | None:
    """Return a trial's network; None if this build has not made it."""
    recipe = trial.recipe
    if not recipe.torch_steps:
        return runner.original
    return runner.networks.get(runner.build.keys.network(recipe.torch_steps, recipe.parent))


def _exported(runner: TrialRunner, trial: Trial) -> ExportedFile:
    network = _network(runner, trial)
    assert network is not None
    return export_network(runner.build, network) if trial.recipe.torch_steps else runner.exported


def best_float_prefix(evaluator: Evaluator, step: Quantize, exported: ExportedFile, sha256: str) -> FloatPrefix:
    """Return which first nodes an int8 file keeps in float: from the ledger, or timed now.

    If the device cannot time single nodes it is the longest prefix: the A/B that follows decides.

    Args:
        evaluator: Times files.
        step: How the file is quantized.
        exported: The network's float file.
        sha256: Of the int8 file.

    Raises:
        StepError: the files cannot be made or timed.
    """
    build = evaluator.build
    key = build.keys.of("float-prefix", file=exported.sha256, step=step, quantized=sha256)

    def make() -> FloatPrefix:
        build.progress("quantize", "finding the first layers that are faster in float")
        with float_file(build, exported, key.digest) as source:
            folder = source.parent
            calibration = build.data.calibration_file(step.samples)
            prefixes = run_step(
                "quantize", write_float_prefix_files, step, source, calibration, folder,
                fused=may_use_runtime_operators(build.profile),
            )  # fmt: skip
            files = [folder / f"{index}.onnx" for index in range(len(prefixes))]
            times = evaluator.times(files)
            costs = [ns * file.stat().st_size for ns, file in zip(times, files, strict=False)]
        best = min(range(len(costs)), key=costs.__getitem__, default=-1)
        return FloatPrefix(nodes=prefixes[best] if not costs or costs[best] < MAX_COST_RATIO * costs[0] else ())

    return build.ledger.remember(key, FloatPrefix, make)

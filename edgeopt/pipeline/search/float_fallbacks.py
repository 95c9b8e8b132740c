"""An int8 file against the same network in float32 on the device that counts, and what is tried after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgeopt.errors import EdgeoptError
from edgeopt.graph.apply import write_float_prefix_files
from edgeopt.pipeline.artifacts.int8_variants import float_file
from edgeopt.pipeline.artifacts.networks import ExportedFile, StoredNetwork, export_network
from edgeopt.pipeline.artifacts.onnx_files import graph_steps, in_int8, on_cpu_alone
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.search.candidate import Candidate, precision_of
from edgeopt.records.codec import digest, network_key
from edgeopt.records.quantization import FloatPrefix
from edgeopt.records.recipe import Quantize
from edgeopt.records.trial import AgainstTrial, Measured, Trial
from edgeopt.select.limits import pays, replaces
from edgeopt.statistics import comparison_ratio, verdict

if TYPE_CHECKING:
    from edgeopt.pipeline.search.driver import Search

GAINS_ENOUGH = 0.5
"""Of float's time: int8 that takes less has no front worth looking for."""
_WORTH_RATIO = 0.98
"""Of the product of time and bytes: a front that saves less is not tried."""


def against_float(search: Search, number: int, outcome: Measured, twin: str) -> Measured:
    """Return an int8 trial's outcome with its A/B against its float32 form, and where it lost if it is slower.

    Args:
        search: The search.
        number: Of the trial.
        outcome: Of the trial.
        twin: SHA-256 of the float32 file.
    """
    search.build.progress("compare", f"trial {number} with its float32 form")
    comparison = search.scale.comparison(outcome.artifact.sha256, twin)
    slower = verdict(comparison) == "slower"
    changes = search.scale.changes(outcome.artifact.sha256, twin) if slower else ()
    return msgspec.structs.replace(outcome, against_float=comparison, changes_against_float=changes)


def try_heirs(search: Search, trial: Trial) -> None:
    """Measure what may take the place of an int8 trial that was compared, on the device that counts.

    The same with its first layers in float, where these are quicker so; and where no int8 form pays, float16, so that
    such a network becomes smaller too.
    """
    outcome, build = trial.outcome, search.build
    if not isinstance(outcome, Measured) or precision_of(trial.recipe) != "int8" or build.device.kind != "measured":
        return
    network = _network(search, trial)
    if network is None:
        return
    candidate = Candidate(steps=trial.recipe.torch_steps, parent=trial.recipe.parent)
    exported = export_network(build, network) if candidate.steps else search.exported
    front = _with_front(search, trial, candidate, network, exported)
    if front is not None and not search.missed(front) and replaces(front, outcome, build.budget):
        return  # its own A/B decides what follows
    if "fp16" not in build.profile.precisions or pays(trial, outcome, proven_on_target=True):
        return
    steps = graph_steps("fp16", build.profile)
    if not search.tried(search.recipe(candidate, steps)):
        search.measure(search.form(candidate, network, exported, steps, {}))


def _network(search: Search, trial: Trial) -> StoredNetwork | None:
    """Return a trial's network; None where this build has not made it."""
    build, recipe = search.build, trial.recipe
    if not recipe.torch_steps:
        return search.original
    return search.networks.get(
        network_key(build.fingerprint, recipe.torch_steps, build.seed, recipe.parent, build.versions)
    )


def _with_front(
    search: Search, trial: Trial, candidate: Candidate, network: StoredNetwork, exported: ExportedFile
) -> Measured | None:
    """Measure a static int8 trial with that front in float which makes the product of time and bytes least.

    None where no front does, or where int8 gains enough as it is. Weights trained for int8 stay as they were trained.
    """
    build, outcome = search.build, trial.outcome
    step = next((step for step in trial.recipe.graph_steps if isinstance(step, Quantize)), None)
    assert isinstance(outcome, Measured)
    if step is None or step.calibration == "trained" or outcome.against_full_int8 is not None:
        return None
    if outcome.against_float is not None and comparison_ratio(outcome.against_float).value < GAINS_ENOUGH:
        return None
    try:
        front = best_front(search, step, exported, outcome.artifact.sha256)
    except EdgeoptError as error:
        build.progress("failed", f"int8 with its first layers in float: {as_failed(error).reason}")
        return None
    if not front.nodes:
        return None
    floats = (*step.float_nodes, *front.nodes)
    steps = in_int8(msgspec.structs.replace(step, float_nodes=floats), build.profile)
    if search.tried(search.recipe(candidate, steps)):
        return None
    note = f"quantize: the first {len(front.nodes)} nodes are in float for speed, not for the score"
    made = search.measure(search.form(candidate, network, exported, steps, {}, (note,)))
    if not isinstance(made.outcome, Measured):
        return None
    build.progress("compare", f"trial {made.number} with trial {trial.number}, which is int8 from the first layer on")
    try:
        comparison = search.scale.comparison(made.outcome.artifact.sha256, outcome.artifact.sha256)
    except EdgeoptError as error:
        build.progress("compare", f"trial {made.number} was not compared: {as_failed(error).reason}")
        return None
    against = AgainstTrial(trial=trial.number, comparison=comparison)
    return search.rewrite(made, msgspec.structs.replace(made.outcome, against_full_int8=against))


def best_front(search: Search, step: Quantize, exported: ExportedFile, sha256: str) -> FloatPrefix:
    """Return which first nodes an int8 file keeps in float: from the ledger, or timed now.

    Where the device times no single nodes it is the longest front: the A/B that follows will tell.

    Raises:
        StepError: the forms cannot be made or timed.
    """
    build = search.build
    key = digest(("front", exported.sha256, step, sha256, build.device, build.environment.onnxruntime,
                  build.profile.runtime, build.budget.batch_size, build.allow_fallback, build.versions,
                  build.fingerprint))  # fmt: skip
    found = build.ledger.get("front", key, FloatPrefix)
    if found is not None:
        return found
    build.progress("quantize", "which first layers are quicker in float")
    with float_file(build, exported, key) as head:
        folder = head.parent
        calibration = build.data.calibration_file(step.samples)
        fused = on_cpu_alone(build.profile)
        fronts = run_step("quantize", write_float_prefix_files, step, head, calibration, folder, fused=fused)
        files = [folder / f"{index}.onnx" for index in range(len(fronts))]
        times = search.scale.times(files)
        costs = [ns * file.stat().st_size for ns, file in zip(times, files, strict=False)]
    best = min(range(len(costs)), key=costs.__getitem__, default=-1)
    found = FloatPrefix(nodes=fronts[best] if not costs or costs[best] < _WORTH_RATIO * costs[0] else ())
    build.ledger.put("front", key, found)
    return found

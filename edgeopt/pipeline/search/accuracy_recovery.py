"""Where int8 costs too much of the score: nodes back to float, then training that rounds as the int8 file does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeopt.errors import DivergedError, EdgeoptError
from edgeopt.graph.apply import find_fake_quant_sites
from edgeopt.pipeline.artifacts.evaluator import timed
from edgeopt.pipeline.artifacts.int8_variants import MixedPrecision, fewest_float_nodes, float_file, sensitivity_study
from edgeopt.pipeline.artifacts.networks import ExportedFile, StoredNetwork, export_network, train_network
from edgeopt.pipeline.artifacts.onnx_files import graph_steps, in_int8, static_int8
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.forms import Form, Made
from edgeopt.pipeline.search.candidate import Candidate, distillation, precision_of, summary_of
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.codec import digest, to_json
from edgeopt.records.recipe import GraphStep, Quantize, QuantizeAware, Sparsify
from edgeopt.records.trial import Failed
from edgeopt.task import CheckedTask

if TYPE_CHECKING:
    from edgeopt.pipeline.search.driver import Search

RATE_RATIO = 0.1
"""Of the task's learning rate, where a network is trained for int8: its weights are nearly right already."""
_WORTH_RATIO = 1.02
"""A form that keeps the score at up to so many times the bytes of plain int8 leaves nothing to train for."""


def lossy_forms(
    search: Search, candidate: Candidate, network: StoredNetwork, exported: ExportedFile, forms: Sequence[Form]
) -> list[Form]:
    """Return further int8 forms of a network where float keeps the score's floor and plain int8 does not.

    Args:
        search: The search.
        candidate: What was made.
        network: Its network.
        exported: Its float file.
        forms: Its files in every precision.
    """
    mixed = mixed_forms(search, candidate, network, exported, forms)
    return [*mixed, *aware_forms(search, candidate, network, exported, [*forms, *mixed])]


def mixed_forms(
    search: Search, candidate: Candidate, network: StoredNetwork, exported: ExportedFile, forms: Sequence[Form]
) -> list[Form]:
    """Return an int8 form with a few nodes in float, where float32 keeps the score's floor and int8 does not."""
    keeping = {precision_of(form.recipe) for form in forms if search.keeps_floor(form)}
    lossy = [form for form in forms if precision_of(form.recipe) == "int8" and isinstance(form.made, Made)]
    if "int8" in keeping or "fp32" not in keeping or not lossy or search.build.out_of_time:
        return []
    made: dict[tuple[GraphStep, ...], Form] = {}

    def keeps(mix: MixedPrecision) -> bool:
        made[mix.steps] = search.form(candidate, network, exported, mix.steps, {}, mix.notes)
        return search.keeps_floor(made[mix.steps])

    try:
        studied = sensitivity_study(search.build, exported, rank=True)
        found = fewest_float_nodes(search.build, studied, keeps)
    except EdgeoptError as error:
        search.build.progress("failed", f"mixed precision of {summary_of(candidate)}: {as_failed(error).reason}")
        return []
    return [] if found is None else [made[found.steps]._replace(ranking=studied.ranking)]


def aware_forms(
    search: Search, candidate: Candidate, network: StoredNetwork, exported: ExportedFile, forms: Sequence[Form]
) -> list[Form]:
    """Return the forms of a network trained for int8, where no int8 form keeps the floor at about int8's size."""
    build = search.build
    sparse = any(isinstance(step, Sparsify) for step in candidate.steps)  # its zeros would not stay
    if sparse or not is_worth_training(search, forms):
        return []
    seconds: dict[str, float] = {}
    child = Candidate(steps=(), parent=network.key)

    def report(done: protocol.EpochProgress) -> None:
        words = f"{summary_of(candidate)}, for int8: epoch {done.epoch + 1} of {done.epochs}, score {done.score:.4f}"
        build.progress("train", words)

    try:
        method = sensitivity_study(build, exported, rank=False).method
        step = msgspec.structs.replace(static_int8(build.profile), calibration=method)
        child = quantization_aware(build, network, step)
        key = digest(("diverged", build.fingerprint, child, build.seed, build.versions))
        diverged = build.ledger.get("diverged", key, Failed)
        if diverged is not None:
            return [Form(search.recipe(child, ()), diverged, seconds)]
        trained: StoredNetwork = timed(seconds, "train", lambda: train_network(
            build, network, child.steps, None, search.original.parameters, report,
            lambda: roundings(build, exported, step),
        ))  # fmt: skip
        _rounding_files(build, exported, step)[1].unlink(missing_ok=True)
        own: ExportedFile = timed(seconds, "export", lambda: export_network(build, trained))
    except EdgeoptError as error:
        failed = as_failed(error)
        if isinstance(error, DivergedError):
            build.ledger.put("diverged", key, failed)
        return [Form(search.recipe(child, ()), failed, seconds)]
    quantized = in_int8(msgspec.structs.replace(step, calibration="trained"), build.profile)
    made = [search.form(child, trained, own, quantized, seconds)]
    if "fp32" in build.profile.precisions:
        made.append(search.form(child, trained, own, graph_steps("fp32", build.profile), seconds))
    return made


def is_worth_training(search: Search, forms: Sequence[Form]) -> bool:
    """Tell whether float keeps the floor, and no int8 form does that is about as small as plain int8."""
    build = search.build
    if not isinstance(build.data.task, CheckedTask) or build.effort.epochs == 0 or build.out_of_time:
        return False
    keeping = [form for form in forms if search.keeps_floor(form)]
    floats = [form for form in keeping if precision_of(form.recipe) != "int8"]
    plain = [step for step in map(_plain_size, forms) if step is not None]
    if not plain or not (floats or "fp32" not in build.profile.precisions):
        return False
    most = plain[0] * _WORTH_RATIO
    return not any(
        isinstance(form.made, Made) and form.made.artifact.size_bytes <= most
        for form in keeping
        if precision_of(form.recipe) == "int8"
    )


def _plain_size(form: Form) -> int | None:
    """Return the bytes of a static int8 form without float nodes, None for any other."""
    plain = any(isinstance(step, Quantize) and not step.float_nodes for step in form.recipe.graph_steps)
    return form.made.artifact.size_bytes if plain and isinstance(form.made, Made) else None


def quantization_aware(build: Build, network: StoredNetwork, step: Quantize) -> Candidate:
    """Return the candidate of a network trained for the int8 file of ``step``."""
    assert step.calibration != "trained"
    aware = QuantizeAware(
        activations=step.activations,
        per_channel=step.per_channel,
        reduce_range=step.reduce_range,
        calibration=step.calibration,
        samples=step.samples,
    )
    distill = distillation(build)
    gentle = msgspec.structs.replace(distill, learning_rate=distill.learning_rate * RATE_RATIO)
    return Candidate(steps=(aware, gentle), parent=network.key)


def roundings(build: Build, exported: ExportedFile, step: Quantize) -> tuple[Path, Path]:
    """Return the files of what a network's int8 file rounds, and of the values there; made where they are not."""
    places, values = _rounding_files(build, exported, step)
    if not (places.exists() and values.exists()):
        with float_file(build, exported, places.stem) as head:
            calibration = build.data.calibration_file(step.samples)
            found = run_step(
                "quantize-aware", find_fake_quant_sites, step, head, calibration, build.data.parity_file, values
            )
        partial = places.with_suffix(".partial")
        partial.write_bytes(to_json(found))
        partial.replace(places)
    return places, values


def _rounding_files(build: Build, exported: ExportedFile, step: Quantize) -> tuple[Path, Path]:
    key = digest(("roundings", exported.sha256, step, build.versions, build.fingerprint))
    folder = build.workspace.folder("tables")
    return folder / f"roundings-{key}.json", folder / f"roundings-{key}.npz"

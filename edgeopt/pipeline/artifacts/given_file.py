"""The baseline of a build from a bare ``.onnx``: the user's file in one piece, checked and run once.

In: a build and its ``OnnxTask``. Out: the network and the file that everything is compared with. What is wrong with the
file is an error that names it as the user did.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.bench.outputs import read_batches, run_arrays, write_batches
from edgeopt.errors import StepError, TaskError
from edgeopt.export.edge_inputs import make_edge_inputs
from edgeopt.graph.compatibility import find_incompatibility
from edgeopt.graph.facts import is_quantized, read_facts
from edgeopt.graph.given.files import GivenModel, baseline_of, with_model, write_given
from edgeopt.graph.model import has_repeated_names, name_nodes, read_opset, save, walk_graphs
from edgeopt.graph.preparation.operator_sets import are_same_outputs, convert_operator_set
from edgeopt.model_files.layout import remove_model
from edgeopt.model_files.tensors import copy_model_proto
from edgeopt.pipeline.artifacts.device_parity import host_target
from edgeopt.pipeline.artifacts.given_batch import check_opened_batch
from edgeopt.pipeline.artifacts.given_training import check_trainable
from edgeopt.pipeline.artifacts.networks import (
    ExportedFile,
    StoredNetwork,
    expected_file,
    original_network,
    parity_inputs_file,
)
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.evaluation import NamedArrays
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.trial import EdgeInput
from edgeopt.tasks.given.onnx_file import OnnxTask
from edgeopt.tasks.given.sample_axes import samples_first
from edgeopt.tasks.onnx_data.states import without_fed_states

_STAGE = "evaluate"
_QUANTIZED_ALREADY = "it is quantized already: only weights that are still in float are stored in int8"
_EDGE_SAMPLES = 2
_SAME_ANSWER_RATIO = 1e-2
"""Of an output's largest value: kernels for another batch size add in another order, in float16 too."""


def take_given_file(build: Build, task: OnnxTask) -> tuple[StoredNetwork, ExportedFile]:
    """Copy a given ``.onnx`` into the workspace as the baseline, and keep its outputs, which parity compares with.

    Raises:
        TaskError: the target cannot load the file, ONNX Runtime cannot run it, it takes another batch size than the one
            to measure, or no output has a row per sample.
    """
    _check_batch_size(task, build.budget.batch_size)
    given, header_notes = _make_loadable(build, task, task.given)
    model = given.model
    reason = run_step("compatibility", find_incompatibility, model, build.profile.max_opset, build.profile.max_ir)
    if reason is not None:
        raise TaskError(f"{task.path} {reason}")
    copy = build.workspace.folder("stages") / f"given-{build.fingerprint}.onnx"
    write_given(given, copy)
    original = original_network(protocol.GIVEN, run_step("facts", read_facts, copy).parameters)
    notes = (*check_opened_batch(build, task, copy), *_run_once(build, task, copy), *task.notes)
    _record_states(build, task, copy)
    edge_inputs = _write_parity_data(build, task, copy, original)
    sha256 = build.workspace.keep_artifact(copy)
    trainable = check_trainable(build, task, build.workspace.artifact(sha256))
    if trainable.parameters:
        original = original_network(protocol.GIVEN, trainable.parameters)
    else:
        task.training = None
    pruned = () if trainable.parameters else (f"not pruned: {trainable.reason}",)
    quantized = (_QUANTIZED_ALREADY,) if is_quantized(model) else ()
    notes = (task.calibrated_by, *pruned, *quantized, *header_notes, *notes)
    return original, ExportedFile(sha256=sha256, exporter="given", parities=(), notes=notes, edge_inputs=edge_inputs)


def _make_loadable(build: Build, task: OnnxTask, given: GivenModel) -> tuple[GivenModel, tuple[str, ...]]:
    """Return a given model with names and an operator set that the target loads, and notes on what was changed.

    What the file computes stays the same: another operator set is taken only if its outputs are.
    """
    given, notes = baseline_of(given, build.profile.max_ir), []
    model = given.model
    if has_repeated_names(model.graph):  # ONNX Runtime refuses them
        model = copy_model_proto(model)
        for graph in walk_graphs(model.graph):
            name_nodes(graph)
        notes.append("nodes that had the same name were given names of their own")
        given = with_model(given, model)
    version, newest = read_opset(model), build.profile.max_opset
    if version > newest:
        lowered, _ = run_step("compatibility", convert_operator_set, model, newest, None)
        if lowered is not None and _computes_the_same(build, task, model, lowered):
            notes.append(f"operator set {version} lowered to {newest}, which the target loads")
            given = with_model(given, lowered)
    return given, tuple(notes)


def _computes_the_same(build: Build, task: OnnxTask, model: onnx.ModelProto, changed: onnx.ModelProto) -> bool:
    found = []
    for one in (model, changed):
        path = build.workspace.folder("stages") / f"header-{build.fingerprint}.onnx"
        save(copy_model_proto(one), path)
        try:
            found.append(run_step(_STAGE, run_arrays, path, task.row_check_batches(), host_target(build), _STAGE))
        except StepError:
            return False
        finally:
            remove_model(path)
    return all(
        are_same_outputs(values, after[name])
        for before, after in zip(*found, strict=True)
        for name, values in before.items()
    )


def _write_parity_data(build: Build, task: OnnxTask, copy: Path, original: StoredNetwork) -> tuple[EdgeInput, ...]:
    """Write examples and the edge inputs on which the file is finite, with its outputs, and return the edge inputs."""
    examples = read_batches(build.data.parity_file)
    index = range(task.fixed_batch or min(_EDGE_SAMPLES, task.axes.count(examples[0])))
    edges = make_edge_inputs(dict(zip(examples[0], task.axes.take(list(examples[0].values()), index), strict=True)))
    try:
        batches = [*examples, *(batch for _, batch in edges)]
        outputs = run_step(_STAGE, run_arrays, copy, batches, host_target(build), _STAGE)
    except StepError:  # such as an index out of range
        batches, edges = examples, []
        outputs = run_step(_STAGE, run_arrays, copy, batches, host_target(build), _STAGE)
    count = len(examples)
    finite = [all(np.isfinite(values).all() for values in found.values()) for found in outputs[count:]]
    kept = [*range(count), *(count + index for index, usable in enumerate(finite) if usable)]
    write_batches(parity_inputs_file(build, original), [batches[index] for index in kept])
    write_batches(expected_file(build, original), [outputs[index] for index in kept])
    return tuple(EdgeInput(kind=kind, steady=False) for (kind, _), usable in zip(edges, finite, strict=True) if usable)


def _check_batch_size(task: OnnxTask, measured: int) -> None:
    if task.fixed_batch not in (None, measured):
        raise TaskError(
            f"{task.path} takes {task.fixed_batch} samples at a time, but the target's latency is that of {measured}. "
            f"Export it with a dynamic batch, or set batch_size = {task.fixed_batch} under [limits] in a target of "
            "your own (`edgeopt targets new`)."
        )


def _run_once(build: Build, task: OnnxTask, copy: Path) -> tuple[str, ...]:
    """Run batches of several sizes, find outputs whose rows are not samples, and return a note on them."""
    batches = task.row_check_batches()
    try:
        outputs = run_step(_STAGE, run_arrays, copy, batches, build.run_target, _STAGE)
    except StepError as error:
        reason = error.reason.replace(str(copy), str(task.path))
        if not _runs(build, copy, batches[-1]):
            raise TaskError(reason) from error
        advice = task.advise_batch_of_one()
        raise TaskError(
            f"{reason}. It runs on one sample, so a batch size is written into the graph, as by a Reshape. Export it "
            f"with a dynamic batch, or with a batch of 1 as the fixed size of its inputs. {advice}".rstrip()
        ) from error
    notes = task.keep_judged_outputs(task.settle_output_axes(batches, outputs), task.advise_batch_of_one())
    axes = {name: task.output_axes.get(name, 0) for name in task.output_names}
    rows = {name: [samples_first(found[name], axis) for found in outputs] for name, axis in axes.items()}
    dependent = [name for name, found in rows.items() if _depends_on_batch(found)]
    if not dependent or task.fixed_batch:
        return notes
    note = (
        f"the answer for a sample depends on the other samples of its batch ({', '.join(dependent)}): scores are those "
        "of the batches in which the inputs are run, not of single samples"
    )
    build.progress("warning", note)
    return (*notes, note)


def _record_states(build: Build, task: OnnxTask, copy: Path) -> None:
    """Run the given file over the sequences, so that states in later steps are those of a real run."""
    if not task.states:
        return
    for steps in (task.selecting, task.calibrating):
        batches = without_fed_states(steps, task.states)
        task.record_states(steps, run_step(_STAGE, run_arrays, copy, batches, host_target(build), _STAGE))


def _depends_on_batch(found: Sequence[NDArray[Any]]) -> bool:
    """Tell whether the first sample has another answer in a large batch than alone; the smallest batch is last."""
    whole, alone = found[0], found[-1][:1]
    if len(whole) < 2 or whole.shape[1:] != alone.shape[1:]:
        return False
    if not np.issubdtype(whole.dtype, np.floating):
        return not np.array_equal(whole[:1], alone)
    largest = float(np.abs(whole).max(initial=0.0)) or 1.0
    return float(np.abs(whole[:1] - alone).max(initial=0.0)) > _SAME_ANSWER_RATIO * largest


def _runs(build: Build, model: Path, batch: NamedArrays) -> bool:
    """Tell whether a file runs on one batch."""
    try:
        run_step(_STAGE, run_arrays, model, [batch], build.run_target, _STAGE)
    except StepError:
        return False
    return True

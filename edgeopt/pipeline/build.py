"""A build from start to end: open everything, search, decide, test the winner once, write the bundle.

In: a ``BuildRequest``. Out: a ``Choice``, and the folder an app takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto, helper

from edgeopt.bench.alike import check_alike
from edgeopt.bench.outputs import run_model, write_batches
from edgeopt.bundle.signature import PrivateKey
from edgeopt.bundle.write import check_out
from edgeopt.config.shapes import parse_shapes
from edgeopt.device.open import device_role, open_devices
from edgeopt.logs import log_to_file
from edgeopt.pipeline.artifacts.evaluator import Evaluator
from edgeopt.pipeline.artifacts.finished_bundle import write_finished
from edgeopt.pipeline.artifacts.given_file import take_given_file
from edgeopt.pipeline.artifacts.given_training import torch_task
from edgeopt.pipeline.artifacts.large_models import may_train
from edgeopt.pipeline.artifacts.networks import ExportedNetwork, export_network, is_exported, original_network
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import INTERRUPTED, MAX_CANDIDATES, Build, Clock, Effort, effort_of
from edgeopt.pipeline.evaluation import open_task
from edgeopt.pipeline.judged_sizes import DimensionSizes, judged_sizes
from edgeopt.pipeline.onnx_teacher import check_teacher
from edgeopt.pipeline.result.expected_drop import with_expected_drop
from edgeopt.pipeline.result.final_choice import decide, model_notes
from edgeopt.pipeline.result.test_set import score_on_test_set
from edgeopt.pipeline.score_checks import check_score, settle_score
from edgeopt.pipeline.search.driver import Further, Search
from edgeopt.pipeline.search.trial_runner import TrialRunner
from edgeopt.pipeline.search.variants.unseen_rows import settle_unseen_rows
from edgeopt.pipeline.search.width_rules import settle_width_rules
from edgeopt.pipeline.task_data import TaskData
from edgeopt.pipeline.torch_process.cluster.pool import Cluster, find_cluster
from edgeopt.pipeline.torch_process.opening import open_pool
from edgeopt.pipeline.torch_process.protocol import AS_TRAINED
from edgeopt.records.base import Record
from edgeopt.records.budget import Budget
from edgeopt.records.calibration import Calibration
from edgeopt.records.choice import Choice
from edgeopt.records.measurement import DeviceInfo
from edgeopt.records.preprocessing import DataOptions
from edgeopt.records.profile import Profile
from edgeopt.records.scoring import ScoreWish
from edgeopt.records.unseen_rows import UnseenRows
from edgeopt.records.width_rules import WidthRules
from edgeopt.report import words
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace
from edgeopt.task import CheckedTask
from edgeopt.tasks.given.onnx_file import OnnxTask


class BuildRequest(Record, frozen=True, kw_only=True):
    """What the user asked for, with every default decided."""

    task: str
    data: str | None
    """Inputs for a bare ``.onnx``: a file, a folder, or ``file.py:name``."""
    data_options: DataOptions = DataOptions()
    """How these become inputs."""
    score_wish: ScoreWish = ScoreWish()
    """How a bare ``.onnx`` is to be scored."""
    yes: bool = False
    """Build even if the trained network scores like a constant answer."""
    profile: Profile
    devices: tuple[str, ...]
    """URIs; several are a pool."""
    calibration: Calibration | None = None
    """The target's latency is estimated from it, instead of measured on ``devices``."""
    notes: tuple[str, ...] = ()
    """What the report has to say about the request itself, such as a calibration that is not valid here."""
    out: str
    workspace: str
    allow_fallback: tuple[str, ...]
    workers: int | None
    ray: str | None = None
    """Address of a Ray cluster that trains; None: this machine does."""
    ray_cores: int | None = None
    """For each training there."""
    time_limit_seconds: float | None
    """Trainings end a little sooner, so that there is time for files of what they have reached."""
    shapes: tuple[str, ...] = ()
    """Shapes at which limits have to be kept, see ``edgeopt.config.shapes``; the target's if there are none."""
    width_rules: WidthRules = WidthRules()
    """Of ``edgeopt.toml`` and the command line, as ``unseen_rows``."""
    unseen_rows: UnseenRows = UnseenRows()
    quick: bool
    further: Further = "if needed"
    command: tuple[str, ...]


def build(
    request: BuildRequest,
    resolve: Callable[[Budget | None, bool], Budget],
    progress: Callable[[str, str], None],
    given: OnnxTask | None = None,
    key: PrivateKey | None = None,
) -> Choice:
    """Run a build and write its bundle.

    Args:
        request: What the user asked for.
        resolve: From the task's own limits for this target (or None), and whether its score is an error, to the limits
            that apply.
        progress: Called with a stage and a detail.
        given: The task, if it is a given file that the caller has opened.
        key: Signs the bundle; None for no signature.

    Raises:
        InputError: the task, a limit or a folder is wrong.
        DeviceError: the device is not there, or lacks a provider.
        StepError: the baseline cannot be made.
    """
    out = Path(request.out)
    check_out(out)
    with (
        Workspace(Path(request.workspace)).open() as workspace,
        log_to_file(workspace.log_file),
        open_build(request, workspace, resolve, progress, given) as opened,
    ):
        search = start(opened, will_train=_will_train(opened, request))
        remarks = check_score(opened, search.runner.evaluator, go_on=request.yes)
        for warning in opened.data.stated_inputs.warnings:
            progress("warning", warning)
        search.run(training=may_train(opened, search.runner.original), further=request.further)
        choice = decide(opened, search, remarks, request.notes)
        choice = with_expected_drop(opened, search.runner.evaluator, choice, search.runner.spares)
        choice = score_on_test_set(opened, search.runner.evaluator, choice)
        choice = write_finished(opened, choice, out, request.command, request.profile, key)
        opened.ledger.end_build(search.runner.trials.build)
        return choice


def _will_train(opened: Build, request: BuildRequest) -> bool:
    """Tell whether several trainings will share this machine's processor, as far as that is known before the export.

    Of a build that goes on from an earlier one it is not.
    """
    task = opened.data.task
    if not isinstance(task, CheckedTask) or opened.gpus or request.ray is not None:
        return False
    original = original_network("original", sum(value.numel() for value in task.model.parameters()))
    is_new = not is_exported(opened, original)
    return is_new and request.further != "never" and may_train(opened, original)


def quick_profile(profile: Profile) -> Profile:
    """Return the profile with a timing rule for a first look: wider intervals in a third of the time."""
    rule = profile.timing
    shorter = msgspec.structs.replace(
        rule, processes=min(3, rule.processes), min_runs=max(2, rule.min_runs // 3),
        min_seconds=rule.min_seconds / 3, warmup_seconds=rule.warmup_seconds / 2,
    )  # fmt: skip
    return msgspec.structs.replace(profile, timing=shorter)


def sizes_of(
    request: BuildRequest, profile: Profile, task: CheckedTask | OnnxTask, batch_size: int
) -> tuple[DimensionSizes, ...]:
    """Return the sizes at which limits have to be kept, the largest first: of the request, or else of the target."""
    source = "--shape" if request.shapes else f"the target {profile.name}"
    shapes = parse_shapes(request.shapes or profile.shapes, source if request.shapes else f"{source}: shape")
    judged = judged_sizes(task, shapes, batch_size, source)
    return tuple(sorted(judged, key=lambda sizes: math.prod(sizes.values()), reverse=True))


def most_trainings(request: BuildRequest, effort: Effort, places: int) -> int:
    """Return how many trainings may run at a time: what the user says, or as many as there are cores or GPUs for."""
    workers = request.workers or min(MAX_CANDIDATES, max(1, places))
    return min(workers, effort.candidates) if request.quick else workers


def _cluster_of(request: BuildRequest, workspace: Workspace, progress: Callable[[str, str], None]) -> Cluster | None:
    """Return the Ray cluster that trains, looked at before any work; None if this machine trains."""
    if request.ray is None:
        return None
    progress("set-up", f"looking at the Ray cluster at {request.ray}")
    return find_cluster(request.ray, request.task, workspace.root, request.ray_cores, progress)


@contextmanager
def open_build(
    request: BuildRequest,
    workspace: Workspace,
    resolve: Callable[[Budget | None, bool], Budget],
    progress: Callable[[str, str], None],
    given: OnnxTask | None = None,
) -> Iterator[Build]:
    """Open ledger, device, task and torch processes for the length of a block."""
    clock, ledger = Clock(), Ledger(workspace.ledger_file)
    profile = quick_profile(request.profile) if request.quick else request.profile
    with clock.stage("set-up"):
        cluster = _cluster_of(request, workspace, progress)
        progress("set-up", f"task {request.task}")
        task = given or open_task(request.task, request.data, request.score_wish, request.data_options)
        is_error = isinstance(task, CheckedTask) and task.score_direction == "lower"
        budget = resolve(task.budgets.get(profile.name), is_error)
        device = open_devices(request.devices)
        kind, profile = device_role(device.uri, profile, estimated=request.calibration is not None)
        identity, environment = device.describe()
        data = TaskData(task, workspace)
        sizes = sizes_of(request, profile, task, budget.batch_size)
        if isinstance(task, CheckedTask):
            check_teacher(task, workspace.folder("teacher"))
        effort = effort_of(task, request.quick)
        named = torch_task(data, workspace, request.task)
        pool, gpus = open_pool(named, task.training, partial(most_trainings, request, effort), cluster)
    with closing(ledger), closing(pool) as torch_pool:
        yield Build(
            task=request.task,
            data=data,
            profile=profile,
            budget=budget,
            effort=effort,
            device=device,
            device_info=DeviceInfo(uri=device.uri, kind=kind, id=identity),
            calibration=request.calibration,
            environment=environment,
            allow_fallback=request.allow_fallback,
            workspace=workspace,
            ledger=ledger,
            torch_pool=torch_pool,
            gpus=gpus,
            fixed_workers=request.workers is not None,
            progress=progress,
            time_limit_seconds=request.time_limit_seconds,
            sizes=sizes,
            width_rules=settle_width_rules(request.width_rules, task),
            unseen_rows=settle_unseen_rows(request.unseen_rows, task),
            clock=clock,
        )


def check_runtime(build: Build) -> None:
    """Run a graph of one node on the device before any work, so that a missing runtime or provider is found first.

    Raises:
        ProviderError: the profile's provider is not there.
        DeviceError: nothing runs there.
    """
    stages = build.workspace.folder("stages")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Abs", ["x"], ["y"])
    graph = helper.make_graph([node], "check", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])])
    model, inputs = stages / "check.onnx", stages / "check.npz"
    model.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7).SerializeToString()
    )
    write_batches(inputs, [{"x": np.zeros(1, np.float32)}])
    run_model(model, inputs, stages / "checked.npz", build.run_target, stage="device")


def start(build: Build, *, will_train: bool = False) -> Search:
    """Export the original, or take the given file, and return the search that begins with it.

    Args:
        build: The build.
        will_train: Whether its candidates are trained on this machine's processor, so that processes load the task.
    """
    task = build.data.task
    check_runtime(build)
    build.progress("baseline", "export")
    with build.clock.stage("baseline"):
        if isinstance(task, OnnxTask):
            original, exported = take_given_file(build, task)
            evaluator = Evaluator(build, exported.sha256)
            settle_score(build, evaluator)
            exported = msgspec.structs.replace(exported, notes=(f"scored by {task.scored_by}", *exported.notes))
            baseline = ExportedNetwork(original, exported)
        else:
            others = min(build.effort.candidates, build.torch_pool.count) - 1 if will_train else 0
            with build.torch_pool.loading_others(others):
                baseline, (original, exported) = export_original(build, task)
            evaluator = Evaluator(build, baseline.exported.sha256)
    for note in model_notes(exported):
        build.progress("note", note)
    number = build.ledger.start_build(build.task, build.profile.name, build.fingerprint)
    _count_interrupted(build, number)
    run_step("device", check_alike, build.workspace.artifact(baseline.exported.sha256), build.run_target)
    return Search(build, TrialRunner(build, original, exported, evaluator, number, baseline))


def _count_interrupted(build: Build, number: int) -> None:
    """Count the time of interrupted builds that this one goes on from, and say what they finished."""
    before = build.ledger.find_interrupted(number)
    if not before.parts:
        return
    build.clock.seconds[INTERRUPTED] = before.seconds
    found = [
        words.plural(before.parts[kind], name)
        for kind, name in (("network", "training"), ("artifact", "file"), ("measurement", "measurement"))
        if kind in before.parts
    ]
    kept = words.listed(found) if found else "some preparations"
    build.progress("resume", f"an interrupted build left {kept}, made in {words.duration(before.seconds)}")


def export_original(build: Build, task: CheckedTask) -> tuple[ExportedNetwork, ExportedNetwork]:
    """Return the baseline, which is the network as it was trained, and the network that all candidates start from.

    They differ if parallel branches could be merged.
    """
    count = sum(value.numel() for value in task.model.parameters())
    original = original_network("original", count)
    exported = export_network(build, original)
    if not exported.merged_sums or exported.parameters is None:
        return ExportedNetwork(original, exported), ExportedNetwork(original, exported)
    as_trained = original_network(AS_TRAINED, count)
    original = original_network("original", exported.parameters)
    return ExportedNetwork(as_trained, export_network(build, as_trained)), ExportedNetwork(original, exported)

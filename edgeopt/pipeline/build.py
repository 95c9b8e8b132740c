"""A build from end to end: open everything, search, choose, test the winner once, write the bundle.

In: a ``BuildRequest``. Out: a ``Choice``, and the folder an app takes.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper

from edgeopt.bench.outputs import run_model, write_batches
from edgeopt.bundle.write import check_out, write_bundle
from edgeopt.device.open import open_device, ranking_kind
from edgeopt.errors import StepError
from edgeopt.graph.compatibility import check_ceiling
from edgeopt.graph.facts import facts
from edgeopt.pipeline.artifacts.device_parity import golden_outputs
from edgeopt.pipeline.artifacts.evaluator import Evaluator, drop_interval
from edgeopt.pipeline.artifacts.networks import ExportedFile, StoredNetwork, expected_file, export_network
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build, Clock, Effort, maker_versions
from edgeopt.pipeline.evaluation import open_task
from edgeopt.pipeline.onnx_teacher import check_teacher
from edgeopt.pipeline.search.driver import Search
from edgeopt.pipeline.task_data import TaskData
from edgeopt.pipeline.torch_process.pool import TorchPool, available_cores
from edgeopt.records.base import Record
from edgeopt.records.budget import Budget
from edgeopt.records.calibration import Calibration
from edgeopt.records.choice import Choice, TestScores
from edgeopt.records.measurement import DeviceInfo, DeviceKind
from edgeopt.records.profile import Profile
from edgeopt.records.trial import Measured
from edgeopt.select.decision import choose, to_compare
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace
from edgeopt.task import CheckedTask
from edgeopt.tasks.onnx_file import OnnxTask

ROUNDS = 2
CANDIDATES = 2
QUICK_EPOCHS = 2
SPARSITIES = (0.5, 0.75)


class BuildRequest(Record, frozen=True, kw_only=True):
    """What the user asked for, with every default decided."""

    task: str
    data: str | None
    """Inputs for a bare ``.onnx``."""
    profile: Profile
    device: str
    """URI."""
    calibration: Calibration | None = None
    """What the target's latency is estimated from, in place of ``device``."""
    notes: tuple[str, ...] = ()
    """What the report has to say of the request itself, such as a calibration that does not hold."""
    out: str
    workspace: str
    allow_fallback: tuple[str, ...]
    workers: int | None
    time_limit_seconds: float | None
    """After this long no further round of trainings begins."""
    quick: bool
    more: bool
    command: tuple[str, ...]


def effort_of(task: CheckedTask | OnnxTask, quick: bool) -> Effort:
    """Return how hard a build tries."""
    epochs = task.training.epochs if isinstance(task, CheckedTask) else 0
    effort = Effort(rounds=ROUNDS, candidates=CANDIDATES, epochs=epochs, sparsities=SPARSITIES, low_rank=True)
    if not quick:
        return effort
    return msgspec.structs.replace(
        effort, rounds=1, epochs=min(epochs, QUICK_EPOCHS), sparsities=SPARSITIES[:1], low_rank=False
    )


def quick_profile(profile: Profile) -> Profile:
    """Return the profile with a timing rule for a first look: wider intervals, a third of the time."""
    rule = profile.timing
    shorter = msgspec.structs.replace(
        rule, processes=min(3, rule.processes), min_seconds=rule.min_seconds / 3, warmup_seconds=rule.warmup_seconds / 2
    )
    return msgspec.structs.replace(profile, timing=shorter)


def build(
    request: BuildRequest,
    resolve: Callable[[Budget | None], Budget],
    progress: Callable[[str, str], None],
) -> Choice:
    """Run a build and write its bundle.

    Args:
        request: What the user asked for.
        resolve: From the task's own limits for this target (or None) to the limits that hold.
        progress: Called with a stage and a detail.

    Raises:
        InputError: the task, a limit or a folder is wrong.
        DeviceError: the device is not there, or lacks a provider.
        StepError: the baseline cannot be made.
    """
    out = Path(request.out)
    check_out(out)
    with (
        Workspace(Path(request.workspace)).open() as workspace,
        open_build(request, workspace, resolve, progress) as world,
    ):
        search = start(world)
        search.run(training=isinstance(world.data.task, CheckedTask), more=request.more)
        choice = decide(world, search, request.notes)
        with world.clock.stage("test"):
            progress("test", "the winner and the baseline on the test batches")
            choice = msgspec.structs.replace(choice, test=test_scores(world, search.scale, choice))
        with world.clock.stage("bundle"):
            progress("bundle", str(out))
            bundle(world, choice, out, request.command)
        return choice


def device_role(request: BuildRequest, uri: str, profile: Profile) -> tuple[DeviceKind, Profile]:
    """Say what the device is to the target, and how the target's sessions run there.

    Raises:
        ConfigError: the device has no times.
    """
    if request.calibration is not None:
        return "estimated", profile.on_host
    kind = ranking_kind(uri, profile)
    return kind, profile.on_stand_in if kind == "stand-in" else profile


@contextmanager
def open_build(
    request: BuildRequest,
    workspace: Workspace,
    resolve: Callable[[Budget | None], Budget],
    progress: Callable[[str, str], None],
) -> Iterator[Build]:
    """Open ledger, device, task and torch workers for a block."""
    clock = Clock()
    ledger = Ledger(workspace.ledger_file)
    profile = quick_profile(request.profile) if request.quick else request.profile
    with clock.stage("set-up"):
        progress("set-up", f"task {request.task}")
        task = open_task(request.task, Path(request.data) if request.data else None)
        budget = resolve(task.budgets.get(profile.name))
        connection = open_device(request.device)
        kind, profile = device_role(request, connection.uri, profile)
        identity, environment = connection.describe()
        device = DeviceInfo(uri=request.device, kind=kind, id=identity)
        data = TaskData(task, workspace)
        if isinstance(task, CheckedTask):
            check_teacher(task, workspace.folder("teacher"))
        effort = effort_of(task, request.quick)
        workers = min(request.workers or available_cores(), effort.candidates)
    trainers = TorchPool(request.task, workers)
    try:
        yield Build(
            task=request.task,
            data=data,
            profile=profile,
            budget=budget,
            effort=effort,
            connection=connection,
            device=device,
            calibration=request.calibration,
            environment=environment,
            allow_fallback=request.allow_fallback,
            workspace=workspace,
            ledger=ledger,
            trainers=trainers,
            fixed_workers=request.workers is not None,
            progress=progress,
            time_limit_seconds=request.time_limit_seconds,
            clock=clock,
        )
    finally:
        trainers.close()
        ledger.close()


def check_runtime(world: Build) -> None:
    """Run a graph of one node on the device, before any work: a missing runtime or provider is said at once.

    Raises:
        ProviderError: the profile's provider is not there.
        DeviceError: nothing runs there.
    """
    stages = world.workspace.folder("stages")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Abs", ["x"], ["y"])
    graph = helper.make_graph([node], "check", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])])
    model, inputs = stages / "check.onnx", stages / "check.npz"
    model.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7).SerializeToString()
    )
    write_batches(inputs, [{"x": np.zeros(1, np.float32)}])
    run_model(model, inputs, stages / "checked.npz", world.connection, world.profile,
              allow_fallback=world.allow_fallback, stage="device")  # fmt: skip


def start(world: Build) -> Search:
    """Export the original, or take the given file, and begin the search."""
    task = world.data.task
    check_runtime(world)
    world.progress("baseline", "export")
    with world.clock.stage("baseline"):
        if isinstance(task, OnnxTask):
            original, exported = take_given_file(world, task)
        else:
            count = sum(value.numel() for value in task.model.parameters())
            original = StoredNetwork(
                key=None, source="original", parameters=count, ratio=1.0, torch_score=None, proof_error=None,
                notes=(), seconds=0.0,
            )  # fmt: skip
            exported = export_network(world, original)
    number = world.ledger.start_build(world.task, world.profile.name, world.fingerprint)
    return Search(world, original, exported, Evaluator(world, exported.sha256), number)


def take_given_file(world: Build, task: OnnxTask) -> tuple[StoredNetwork, ExportedFile]:
    """Take a given ``.onnx`` into the workspace as the baseline, and keep its outputs as what parity compares with."""
    check_ceiling(task.path, world.profile.max_opset, world.profile.max_ir)
    copy = world.workspace.folder("stages") / f"given-{world.fingerprint}.onnx"
    shutil.copyfile(task.path, copy)
    found = run_step("facts", facts, copy)
    original = StoredNetwork(
        key=None, source="given", parameters=found.parameters, ratio=1.0, torch_score=None, proof_error=None,
        notes=(), seconds=0.0,
    )  # fmt: skip
    run_step("evaluate", run_model, copy, world.data.parity_file, expected_file(world, original), world.connection,
             world.profile, allow_fallback=world.allow_fallback)  # fmt: skip
    sha256 = world.workspace.keep_artifact(copy)
    notes = (f"scored by {task.scored_by}", task.calibrated_by)
    return original, ExportedFile(sha256=sha256, exporter="given", parities=(), notes=notes)


def decide(world: Build, search: Search, notes: tuple[str, ...] = ()) -> Choice:
    """Choose, with the winner compared with the baseline and its float twin: a slower one makes way for the next.

    An int8 file that was found slower than the baseline meets its twin too, for the layers that ate the gain are named
    then. What is tried after a comparison (``twins.try_heirs``) is chosen from too.
    """
    task = world.data.task
    teacher = str(task.teacher) if isinstance(task, CheckedTask) and task.teacher else None
    while True:
        choice = choose(
            tuple(search.trials),
            world.budget,
            task=task.name,
            target=world.profile.name,
            device=world.device,
            proven_on_target=world.device.kind == "measured",
            seconds=world.clock.seconds,
            notes=(*notes, *search.notes),
            sparsity=search.sparsity,
        )
        number = next(filter(search.uncompared, to_compare(choice)), None)
        if number is None:
            return msgspec.structs.replace(choice, teacher=teacher)
        with world.clock.stage("measure"):
            search.compare(number)


def measured(choice: Choice, number: int) -> Measured:
    """Return a measured trial's outcome."""
    outcome = choice.trial(number).outcome
    assert isinstance(outcome, Measured)
    return outcome


def test_scores(world: Build, scale: Evaluator, choice: Choice) -> TestScores | None:
    """Score winner and baseline on the test batches, which nothing else looks at."""
    if choice.winner is None:
        return None
    test = world.data.test_set()
    if test is None:
        return None
    inputs, targets = test
    baseline, base_samples = scale.evaluate(measured(choice, 0).artifact.sha256, inputs, targets)
    winner, samples = scale.evaluate(measured(choice, choice.winner).artifact.sha256, inputs, targets)
    return TestScores(
        baseline_score=baseline,
        winner_score=winner,
        drop_ci95=drop_interval(base_samples, samples),
        samples=sum(len(np.atleast_1d(target)) for target in targets),
    )


def bundle(world: Build, choice: Choice, out: Path, command: tuple[str, ...]) -> None:
    """Write the folder that an app takes."""
    model = None
    outputs: dict[str, Any] = {}
    if choice.winner is not None:
        sha256 = measured(choice, choice.winner).artifact.sha256
        model = world.workspace.artifact(sha256)
        if hashlib.sha256(model.read_bytes()).hexdigest() != sha256:
            raise StepError("bundle", f"{model} was changed since it was made. Remove it and run the command again.")
        outputs = golden_outputs(world, model)
    write_bundle(
        out,
        choice,
        model=model,
        golden_inputs=world.data.golden_inputs if model else {},
        golden_outputs=outputs,
        labels=world.data.task.labels,
        preprocessing=world.data.task.preprocessing,
        postprocessing=world.data.task.postprocessing,
        versions=maker_versions(),
        seed=world.seed,
        command=shlex.join(command),
    )

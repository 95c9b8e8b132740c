"""A look inside: the nodes of a file with their times, or the channel groups of a task's network.

In: a ``.onnx`` file and a device, or a task. Out: a ``ModelInspection`` or a ``TaskInspection``.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from edgeopt.bench.nodes import (
    LONG_PROFILING_TURNS,
    FileTime,
    NodeTime,
    operator_time_ratios,
    profile_nodes,
    provider_time_ratios,
)
from edgeopt.bench.run_target import RunTarget
from edgeopt.config.shapes import InputShapes
from edgeopt.errors import InputError, StepError, WorkspaceError
from edgeopt.graph.compatibility import find_foreign_operators
from edgeopt.graph.counting.phone_operators import PhoneOperators, count_phone_operators
from edgeopt.graph.facts import ValueInfo, read_facts
from edgeopt.graph.initializers import list_stored_tensors
from edgeopt.graph.model import load
from edgeopt.pipeline.given_model import ReadyModel, open_given_model
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.base import Record
from edgeopt.records.codec import from_json
from edgeopt.records.groups import Branch, GroupTable
from edgeopt.records.latency import LatencyTable
from edgeopt.records.recipe import Importance
from edgeopt.store.ledger import Ledger
from edgeopt.store.workspace import Workspace
from edgeopt.tasks.given.onnx_file import OnnxTask
from edgeopt.tasks.given.onnx_trainable import TRAINING_SUFFIX
from edgeopt.tasks.onnx_data.made_up import MADE_UP

_logger = logging.getLogger(__name__)

_STAGE = "inspect"
PROFILE_SOURCE = "a quick profile in PyTorch, on one thread of this machine"
TABLE_SOURCE = "ONNX Runtime's latency table"


class InspectedValue(Record, frozen=True, kw_only=True):
    """An input or an output of a file."""

    name: str
    shape: tuple[int | str, ...]
    """A string is a dynamic dimension."""
    dtype: str


class InspectedTensor(Record, frozen=True, kw_only=True):
    """A tensor that is stored in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_bytes: int
    size_ratio: float
    """Of the file's size."""


class InspectedNode(Record, frozen=True, kw_only=True):
    """A node as ONNX Runtime runs it, after its optimizations."""

    name: str
    operator: str
    provider: str
    ns: float
    time_ratio: float
    """Of the time of all nodes."""


class ProviderUse(Record, frozen=True, kw_only=True):
    """The part of a file that one execution provider runs."""

    nodes: int
    time_ratio: float


class ModelInspection(Record, frozen=True, kw_only=True):
    """One ``.onnx`` file; ``edgeopt inspect MODEL.onnx --json`` prints it."""

    schema: Literal["edgeopt/inspect-model-1"] = "edgeopt/inspect-model-1"
    model: str
    target: str
    device: str
    """URI."""
    batch_size: int
    size_bytes: int
    download_bytes: int
    """After deflate."""
    parameters: int
    nonzero_parameters: int
    weight_types: tuple[str, ...] = ()
    """Of most of the weights, the most frequent first."""
    macs: int
    """For one sample."""
    opset: int
    ir_version: int
    operators: dict[str, int]
    """In the file, before ONNX Runtime's optimizations."""
    inputs: tuple[InspectedValue, ...]
    outputs: tuple[InspectedValue, ...]
    tensors: tuple[InspectedTensor, ...]
    """Largest first."""
    run_ms: float | None
    """Of one batch, without the profiler; null if it was not run."""
    not_run: str | None = None
    """Why it was not run."""
    notes: tuple[str, ...] = ()
    """On the file and its inputs."""
    providers: dict[str, ProviderUse]
    time_by_operator: dict[str, float]
    """Ratio of the time of all nodes, largest first."""
    nodes: tuple[InspectedNode, ...]
    """Slowest first."""
    phone_providers: tuple[PhoneOperators, ...] = ()
    """What those of phones, which are not here, would run."""


class InspectedGroup(Record, frozen=True, kw_only=True):
    """Channels that are pruned together."""

    name: str
    channels: int
    frozen_by: str | None
    """Why all channels have to stay; null if they can go."""
    importance: tuple[float, ...]
    latency_ratio: float
    """Of the network's time, in layers whose sizes follow these channels; a layer may count for several groups."""
    parameters_a_channel: int


class TaskInspection(Record, frozen=True, kw_only=True):
    """The network of a task; ``edgeopt inspect TASK --json`` prints it."""

    schema: Literal["edgeopt/inspect-task-1"] = "edgeopt/inspect-task-1"
    task: str
    importance: Importance
    latency_source: str
    """Where the times come from."""
    parameters: int
    macs: int
    """For one sample."""
    free_channels: int
    channels: int
    groups: tuple[InspectedGroup, ...]
    branches: tuple[Branch, ...] = ()


def inspect_model(
    model: Path,
    inputs: str | None,
    target: RunTarget,
    progress: Callable[[str], None],
    shapes: InputShapes | None = None,
) -> ModelInspection:
    """Read a file, and time its nodes if it can be run.

    Args:
        model: An ``.onnx`` file.
        inputs: See ``open_given_model``.
        target: Where and how it runs.
        progress: Called with a few words.
        shapes: Of made-up inputs.

    Raises:
        InputError: the file does not exist.
        TaskError, DataError: see ``open_given_model``.
        ProviderError, StepError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    if not model.exists():
        raise InputError(f"there is no file {model}. A task is a ready task's name, `module:name` or `file.py:name`.")
    progress("reading the file")
    with open_given_model(model, inputs, target.batch_size, is_run=False, shapes=shapes) as ready:
        file_facts = read_facts(ready.path, ready.sample_shapes)
        tensors = tuple(
            InspectedTensor(**tensor._asdict(), size_ratio=tensor.stored_bytes / ready.size_bytes)
            for tensor in list_stored_tensors(ready.path)
        )
        timed, not_run = _try_to_run(model, ready, target, progress)
        phone_operators = count_phone_operators(load(ready.path, _STAGE))
    nodes = [] if timed is None else timed.nodes
    return ModelInspection(
        model=str(model), target=target.profile.name, device=target.device.uri, batch_size=target.batch_size,
        size_bytes=ready.size_bytes, **{name: getattr(file_facts, name) for name in _SAME_FACTS},
        inputs=_values(file_facts.inputs), outputs=_values(file_facts.outputs), tensors=tensors,
        run_ms=None if timed is None else timed.ns / 1e6, not_run=not_run, notes=(*ready.notes, *file_facts.notes),
        providers=_provider_use(nodes), time_by_operator=operator_time_ratios(nodes),
        nodes=_nodes(nodes), phone_providers=phone_operators,
    )  # fmt: skip


_SAME_FACTS = (
    "download_bytes", "parameters", "nonzero_parameters", "weight_types", "macs", "opset", "ir_version", "operators",
)  # fmt: skip
"""Fields that ``OnnxFacts`` and ``ModelInspection`` share."""


def _try_to_run(
    model: Path, ready: ReadyModel, target: RunTarget, progress: Callable[[str], None]
) -> tuple[FileTime | None, str | None]:
    """Return the times of a file's nodes, or why it is not run. On the user's own inputs a failure is an error."""
    foreign = find_foreign_operators(load(ready.path, _STAGE))
    if foreign:
        return None, f"ONNX Runtime has no operators {', '.join(foreign)}"
    if ready.no_inputs is not None:
        return None, ready.no_inputs
    try:
        return _time_nodes(ready, target, progress), None
    except StepError as error:
        if not any(note.startswith(MADE_UP) for note in ready.notes):
            raise
        reason = error.reason.replace(str(ready.path), str(model))
        return None, f"on made-up inputs: {reason} If these do not fit, pass --inputs FILE.npz, or --shape."


def _time_nodes(ready: ReadyModel, target: RunTarget, progress: Callable[[str], None]) -> FileTime:
    progress("profiling nodes")
    _logger.debug("profiling %s on %s, batch size %d", ready.path, target.device.uri, target.batch_size)
    (timed,) = profile_nodes([ready.path], replace(target, inputs=ready.inputs), LONG_PROFILING_TURNS)
    return timed


def _values(values: Iterable[ValueInfo]) -> tuple[InspectedValue, ...]:
    return tuple(InspectedValue(**value._asdict()) for value in values)


def _provider_use(nodes: Sequence[NodeTime]) -> dict[str, ProviderUse]:
    counts = Counter(node.provider for node in nodes)
    ratios = provider_time_ratios(nodes)
    return {name: ProviderUse(nodes=counts[name], time_ratio=ratio) for name, ratio in ratios.items()}


def _nodes(nodes: Sequence[NodeTime]) -> tuple[InspectedNode, ...]:
    total_ns = sum(node.ns for node in nodes) or 1.0
    return tuple(
        InspectedNode(
            name=node.name, operator=node.operator, provider=node.provider, ns=node.ns, time_ratio=node.ns / total_ns
        )
        for node in sorted(nodes, key=lambda node: -node.ns)
    )


def inspect_channels(
    path: Path, inputs: str | None, workspace: Path, *, progress: Callable[[str], None]
) -> TaskInspection:
    """Find the channel groups of a given ``.onnx``, as a PyTorch module (``inspect_task``).

    Args:
        path: The file.
        inputs: The user's data; None for random numbers, on which importance means little.
        workspace: As in ``inspect_task``.
        progress: As in ``inspect_task``.

    Raises:
        TaskError, DataError: the file or its inputs cannot be used.
        StepError: it has an operator without a counterpart in PyTorch, or cannot be traced.
    """
    task = OnnxTask(path, inputs)
    with tempfile.TemporaryDirectory(prefix="edgeopt-inspect-", suffix=TRAINING_SUFFIX) as folder:
        task.write_training(Path(folder))
        return msgspec.structs.replace(inspect_task(folder, workspace, progress=progress), task=str(path))


def inspect_task(spec: str, workspace: Path, *, progress: Callable[[str], None]) -> TaskInspection:
    """Find the channel groups of a task's network, how important each channel is, and how much time each group takes.

    PyTorch runs in a process of its own.

    Args:
        spec: The task, as ``edgeopt.task.load_task`` takes it.
        workspace: A build's workspace: its latency table of this network is used if it has one.
        progress: Called with a few words about the current step.

    Raises:
        TaskError: the task cannot be loaded or is at fault.
        StepError: the network cannot be traced or analysed.
    """
    progress("loading the task and following its channels")
    importance, pool = Importance(), TorchPool(spec, 1)
    try:
        groups = _read_groups(pool, importance)
        ratios, source = _time_ratios(pool, groups, workspace, progress)
    finally:
        pool.close()
    parameters = groups.parameters({})
    return TaskInspection(
        task=spec,
        importance=importance,
        latency_source=source,
        parameters=parameters,
        macs=groups.macs({}),
        free_channels=sum(group.channels for group in groups.free),
        channels=sum(group.channels for group in groups.groups),
        branches=groups.branches,
        groups=tuple(
            InspectedGroup(
                name=group.name,
                channels=group.channels,
                frozen_by=group.frozen_by,
                importance=group.importance,
                latency_ratio=ratios.get(group.name, 0.0),
                parameters_a_channel=parameters - groups.parameters({group.name: group.channels - 1}),
            )
            for group in groups.groups
        ),
    )


_ORIGINAL = protocol.NetworkRef(source="original", file=None)


def _read_groups(pool: TorchPool, importance: Importance) -> GroupTable:
    """Return the group table of the task's network."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-inspect-") as folder:
        out = Path(folder) / "groups.json"
        pool.do(protocol.TableJob(network=_ORIGINAL, importance=importance, out=str(out)), protocol.TableDone)
        return from_json(out.read_bytes(), GroupTable)


def _time_ratios(
    pool: TorchPool, groups: GroupTable, workspace: Path, progress: Callable[[str], None]
) -> tuple[dict[str, float], str]:
    """Return each group's share of the time, and where the times come from."""
    table = find_latency_table(workspace, groups)
    _logger.debug("%d groups; latency table in %s: %s", len(groups.groups), workspace, "yes" if table else "no")
    if table is not None:
        return attribute_table_time(table), f"{TABLE_SOURCE} in {table.precision}, from {workspace}"
    progress("timing operators")
    profile = pool.do(protocol.ProfileJob(network=_ORIGINAL), protocol.ProfileDone)
    return attribute_profile_time(groups, profile.ns, profile.total_ns), PROFILE_SOURCE


def find_latency_table(workspace: Path, groups: GroupTable) -> LatencyTable | None:
    """Return the newest latency table of this network that a build left in the workspace, or None."""
    file = Workspace(workspace).ledger_file
    if not file.is_file():
        return None
    try:
        ledger = Ledger(file)
    except WorkspaceError as error:  # such as one of another version: the times then come from PyTorch
        _logger.debug("no latency table: %s", error)
        return None
    try:
        tables = ledger.newest_first("latency-table", LatencyTable)
        return next((table for table in tables if table.wholes and table.wholes[0].widths == groups.widths()), None)
    finally:
        ledger.close()


def attribute_table_time(table: LatencyTable) -> dict[str, float]:
    """Return for each group the ratio of the original's time in layers whose sizes follow its channels."""
    total = sum(layer.times[0].ns for layer in table.layers) or 1.0
    return _add_by_group(
        ({name for dimension in layer.dimensions for name in dimension.per_channel}, layer.times[0].ns / total)
        for layer in table.layers
    )


def attribute_profile_time(groups: GroupTable, ns: dict[str, float], total_ns: float) -> dict[str, float]:
    """Return for each group the ratio of the time in operators whose weights follow its channels.

    Args:
        groups: The groups and the trainable tensors.
        ns: Time of each tensor's operator, by the tensor's name.
        total_ns: Time of the whole network.
    """
    return _add_by_group(
        ({group for dimension in tensor.dims for group in dimension.per_channel},
         ns.get(tensor.name, 0.0) / (total_ns or 1.0))
        for tensor in groups.tensors
    )  # fmt: skip


def _add_by_group(layers: Iterable[tuple[set[str], float]]) -> dict[str, float]:
    """Add up; a layer between two groups counts for both, so the ratios add up to more than one."""
    ratios = defaultdict[str, float](float)
    for names, ratio in layers:
        for name in names:
            ratios[name] += ratio
    return dict(ratios)

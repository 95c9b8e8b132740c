"""The latency table of a network on the build's device, made once before any training, and the latency limit.

The original's file and the files of a few other widths teach a ``WidthTemplate``, which gives files at any widths
without another export. A handful of them run under ONNX Runtime's profiler. Times of layers are shared with other
tasks in the workspace, by the layer's shape.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
from scipy.stats import qmc

from edgeopt.bench.nodes import FileTime, ProfilingTurns, collect_node_shapes, profile_nodes
from edgeopt.errors import DeviceError, StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.model import save
from edgeopt.latency.fused_layers import FusedLayers
from edgeopt.latency.width_template import DifferentNodesError, SizeResolver, WidthTemplate, are_distinguishable
from edgeopt.pipeline.artifacts.networks import ExportedFile
from edgeopt.pipeline.artifacts.onnx_files import TIMED_CALIBRATION_SAMPLES, timing_steps
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.torch_process import protocol
from edgeopt.planning.widths import group_step
from edgeopt.records.base import Record
from edgeopt.records.codec import digest, from_json, to_json
from edgeopt.records.groups import Dimension, GroupTable
from edgeopt.records.latency import LatencyTable, Layer, LayerTime, NetworkTime, NoLatencyTable
from edgeopt.records.profile import Precision
from edgeopt.records.trial import Measured, Trial
from edgeopt.statistics import end_at, latency_interval_ms
from edgeopt.store.files import write_whole

_STAGE = "latency table"
_FORM = 2
"""Networks that had no table in an earlier form may have one now."""
BUDGET_SECONDS = 30.0
"""No further turn of timing begins after this."""
PROBES = 16
"""Choices of widths that are timed, including the original: twice as many as a layer's time has terms."""
KNOWN_PROBES = 5
"""Choices that are timed if every layer is known from another task: the whole network still has to be measured."""
KNOWN_TIMES = 10
"""A layer with this many times from another task is known."""
MIN_PROBE_RATIO = 0.1
"""Of a group's channels: no choice goes below it."""
FEW_TEACHING_FILES, MAX_TEACHING_FILES = 3, 6
"""Besides the original's."""
ATTEMPTS = 200

_Widths = dict[str, int]


class SharedTimes(Record, frozen=True, kw_only=True):
    """Times of layers by their shape, from every task of the workspace."""

    layers: dict[str, tuple[LayerTime, ...]]


class LatencyLimit(NamedTuple):
    """What is known about latency when widths are chosen: the times of layers, and the limit."""

    table: LatencyTable | NoLatencyTable
    max_ratio: float | None
    """Of the original's latency in the table's precision; None if the original keeps the limit."""


def latency_limit(
    build: Build, groups: GroupTable, exported: ExportedFile, precision: Precision, original: Trial | None
) -> LatencyLimit:
    """Return the table and the limit; nothing may train meanwhile.

    Args:
        build: The build.
        groups: Of the original network.
        exported: The original's file.
        precision: The one that would ship.
        original: The trial of the original in that precision.
    """
    build.progress("latency table", f"timing layers in {precision}")
    table = latency_table(build, groups, exported, precision)
    limit = build.budget.max_latency_ms
    if limit is None or original is None or not isinstance(original.outcome, Measured):
        return LatencyLimit(table, None)
    point, _, high = latency_interval_ms(original.outcome.measurement, build.budget.latency_percentile)
    now = end_at(point, high, build.budget.confidence)
    return LatencyLimit(table, limit / now if limit < now else None)


def latency_table(
    build: Build, groups: GroupTable, exported: ExportedFile, precision: Precision
) -> LatencyTable | NoLatencyTable:
    """Return the table, from the ledger or measured now; nothing may train meanwhile.

    Args:
        build: The build.
        groups: Of the original network.
        exported: The original's file.
        precision: Of the files that are timed.

    Raises:
        DeviceLostError, WorkspaceError: the connection broke, or the disk is full; the next build starts the table
            again.
    """
    steps = timing_steps(precision, build.profile)
    details = {
        "file": exported.sha256, "steps": steps, "channel_step": build.profile.channel_step, "groups": groups.widths(),
    }  # fmt: skip
    key, missing_key = (
        build.keys.of("latency-table", **details),
        build.keys.of("no-latency-table", **details, form=_FORM),
    )
    found = build.ledger.get(key, LatencyTable) or build.ledger.get(missing_key, NoLatencyTable)
    if found is not None:
        return found
    shared = build.workspace.folder("latency") / f"{build.keys.of('shared-layer-times', steps=steps).digest}.json"
    try:
        with build.workspace.scratch(f"latency-{key.digest}") as folder:
            table = run_step(_STAGE, _measure, build, groups, exported, precision, folder, shared)
    except (StepError, DeviceError) as error:
        missing = NoLatencyTable(reason=as_failed(error).reason)
        build.ledger.put(missing_key, missing)
        return missing
    build.ledger.put(key, table)
    _share(shared, table.layers)
    return table


def _measure(
    build: Build, groups: GroupTable, exported: ExportedFile, precision: Precision, folder: Path, shared: Path
) -> LatencyTable:
    begin = time.perf_counter()
    full = groups.widths()
    learned = learn_template(groups, lambda widths: _teach(build, exported, precision, widths, full, folder))
    template = learned.template
    shapes = collect_node_shapes(_write(template, learned.widths, folder), build.run_target)
    network = FusedLayers(template.first, template.sizes, shapes)
    probes = probing_widths(groups, build.profile.channel_step)
    files = _write(template, probes, folder)
    times = _time(build, files[:KNOWN_PROBES])
    layers = network.layers(probes, times)
    known = _known(shared)
    if any(len(known.get(layer.shape, ())) < KNOWN_TIMES for layer in layers):
        left = seconds_left(begin)
        times = join_timings(times, _time(build, [files[0], *files[KNOWN_PROBES:]], left), KNOWN_PROBES)
        layers = network.layers(probes, times)
    return LatencyTable(
        device=build.device_info.id,
        runtime=build.environment.onnxruntime,
        precision=precision,
        threads=build.profile.threads,
        batch_size=build.budget.batch_size,
        layers=tuple(_with(layer, known.get(layer.shape, ())) for layer in layers),
        wholes=tuple(NetworkTime(widths=probes[one.file], ns=one.ns) for one in times),
        seconds=time.perf_counter() - begin,
    )


def seconds_left(begin: float) -> float:
    """Return for how many more seconds files may be timed."""
    return max(1.0, BUDGET_SECONDS - (time.perf_counter() - begin))


def _time(build: Build, files: Sequence[Path], seconds: float = BUDGET_SECONDS / 2) -> list[FileTime]:
    return profile_nodes(files, build.run_target, ProfilingTurns(budget_seconds=seconds))


def join_timings(first: Sequence[FileTime], second: Sequence[FileTime], offset: int) -> list[FileTime]:
    """Join the times of two runs that both began with the original; the second is scaled to the speed of the first.

    Args:
        first: The original is file 0.
        second: The original is file 0, and the others follow from ``offset`` on in the whole list.
        offset: Place of the second run's file 1 in the whole list.
    """
    pace = first[0].ns / second[0].ns
    rest = [
        FileTime(one.file + offset - 1, pace * one.ns, [node._replace(ns=pace * node.ns) for node in one.nodes])
        for one in second[1:]
    ]
    return [*first, *rest]


def moving_dimensions(groups: GroupTable) -> list[Dimension]:
    """Return every dimension of the network's tensors that follows the widths of groups that can shrink, once."""
    free = {group.name for group in groups.free}
    dims = [dim for tensor in groups.tensors for dim in tensor.dims if free.intersection(dim.per_channel)]
    return list({digest(dim): dim for dim in dims}.values())


def further_dimensions(groups: GroupTable) -> list[Dimension]:
    """Return sizes that are no tensor's, but that files show.

    These are the widths of single groups (of one head, or of one part of a split), and the sums of parallel layers,
    which simplifiers fuse: weights that follow each other and read the same dimension, as of query, key and value.
    """
    found = [Dimension(fixed=0, per_channel={group.name: 1}) for group in groups.free]
    weights = [tensor.dims for tensor in groups.tensors if len(tensor.dims) == 2]
    for count in (2, 3):
        for start in range(len(weights) - count + 1):
            parallel = weights[start : start + count]
            if all(dims[1] == parallel[0][1] for dims in parallel):
                found.append(_sum([dims[0] for dims in parallel]))
    free = {group.name for group in groups.free}
    return [dim for dim in found if free.intersection(dim.per_channel)]


def joined_dimensions(groups: GroupTable) -> list[Dimension]:
    """Return the widths of two or three groups in a row together, as embeddings that are concatenated have."""
    single = [Dimension(fixed=0, per_channel={group.name: 1}) for group in groups.free]
    return [_sum(single[start : start + count]) for count in (2, 3) for start in range(len(single) - count + 1)]


def _sum(dims: Sequence[Dimension]) -> Dimension:
    """Return the size of several dimensions, one after another."""
    counts: Counter[str] = Counter()
    for dim in dims:
        counts.update(dim.per_channel)
    return Dimension(fixed=sum(dim.fixed for dim in dims), per_channel=dict(counts))


class Learned(NamedTuple):
    """A template, and the widths of the files that it was learned from."""

    template: WidthTemplate
    widths: list[_Widths]


def learn_template(groups: GroupTable, teach: Callable[[Sequence[_Widths]], list[onnx.ModelProto]]) -> Learned:
    """Return the template of a network.

    It is learned from the original's file and others. If these have other nodes than the original (a simplifier fuses
    layers only if they are equally wide), it is learned from the others alone: a pruned network will look like them.

    Args:
        groups: Of the original network.
        teach: Returns files at these widths.

    Raises:
        StepError: the files differ in more than sizes, or do not show which group a size follows.
    """
    dimensions, further, joined = moving_dimensions(groups), further_dimensions(groups), joined_dimensions(groups)
    widths = teaching_widths(groups, dimensions, further)
    try:
        return Learned(WidthTemplate(teach(widths), SizeResolver(dimensions, widths, further, joined)), widths)
    except DifferentNodesError:
        widths = teaching_widths(groups, dimensions, further, with_original=False)
        return Learned(WidthTemplate(teach(widths), SizeResolver(dimensions, widths, further, joined)), widths)


def teaching_widths(
    groups: GroupTable,
    dimensions: Sequence[Dimension],
    further: Sequence[Dimension] = (),
    *,
    with_original: bool = True,
) -> list[_Widths]:
    """Return widths whose files show which size follows which group.

    Args:
        groups: Of the original network.
        dimensions: That have to be distinguishable in these files.
        further: That should be too, if few files are enough.
        with_original: Whether the first widths are the original's.

    Raises:
        StepError: a few choices are not enough.
    """
    full, free = groups.widths(), groups.free
    rng = np.random.default_rng(0)
    begin = [full] if with_original else []
    for wanted, most in (([*dimensions, *further], FEW_TEACHING_FILES), (dimensions, MAX_TEACHING_FILES)):
        for count in range(2 - len(begin), most + 1):
            for _ in range(ATTEMPTS):
                ratios = rng.uniform(0.3, 0.95, (count, len(free)))
                others = [
                    full
                    | {
                        one.name: max(one.least, round(ratio * one.channels))
                        for one, ratio in zip(free, row, strict=True)
                    }
                    for row in ratios
                ]
                found = [*begin, *others]
                if _all_move(groups, found) and are_distinguishable(wanted, found):
                    return found
    raise StepError(_STAGE, "too many groups of channels have too few channels to distinguish their sizes.")


def _all_move(groups: GroupTable, widths: Sequence[_Widths]) -> bool:
    """Tell whether each group that can shrink has several widths; one that has not would seem to cost nothing."""
    return all(len({one[group.name] for one in widths}) > 1 for group in groups.free if group.channels > group.least)


def probing_widths(groups: GroupTable, step: int) -> list[_Widths]:
    """Return the widths that are timed: the original's, then choices that spread each group over its range.

    A Latin hypercube visits every part of each group's range once, in a different order for each group, so each layer
    is seen at that many pairs of widths. Like candidates' widths they are multiples of ``step`` (``group_step``), which
    still shows coarser steps of the device.
    """
    full, free = groups.widths(), groups.free
    rows = qmc.LatinHypercube(max(1, len(free)), rng=0).random(PROBES - 1)
    found = [full]
    for row in rows:
        widths = {}
        for group, position in zip(free, row, strict=True):
            wanted = max(group.least, group.channels * (MIN_PROBE_RATIO + (1 - MIN_PROBE_RATIO) * float(position)))
            multiple = group_step(group, step)
            widths[group.name] = min(group.channels, max(1, int(np.ceil(wanted / multiple)) * multiple))
        found.append(full | widths)
    return found


def _teach(
    build: Build, exported: ExportedFile, precision: Precision, widths: Sequence[_Widths], full: _Widths, folder: Path
) -> list[onnx.ModelProto]:
    """Return the files that a template learns from, in the precision asked for."""
    others = {folder / f"teaching{number}.onnx": one for number, one in enumerate(widths) if one != full}
    job = protocol.ProbeJob(
        exporter=exported.exporter,
        widths=tuple(others.values()),
        outs=tuple(map(str, others)),
        max_opset=build.profile.max_opset,
        max_ir=build.profile.max_ir,
    )
    build.torch_pool.do(job, protocol.ProbeDone)
    steps = timing_steps(precision, build.profile)
    models = []
    original = [build.workspace.artifact(exported.sha256)] if full in widths else []
    for number, source in enumerate([*original, *others]):
        target = folder / f"made{number}.onnx"
        apply_steps(steps, source, target, calibration=build.data.calibration_file(TIMED_CALIBRATION_SAMPLES),
                    max_opset=build.profile.max_opset, max_ir=build.profile.max_ir)  # fmt: skip
        models.append(onnx.load_model(target))
    return models


def _write(template: WidthTemplate, widths: Sequence[_Widths], folder: Path) -> list[Path]:
    paths = []
    for number, one in enumerate(widths):
        paths.append(folder / f"at-{len(widths)}-{number}.onnx")
        save(template.at(one), paths[-1])
    return paths


def _known(path: Path) -> dict[str, tuple[LayerTime, ...]]:
    """Return the times of layers that other tasks left; none if there are none or they are of another version."""
    try:
        return from_json(path.read_bytes(), SharedTimes).layers
    except (OSError, msgspec.DecodeError):
        return {}


def _with(layer: Layer, others: Sequence[LayerTime]) -> Layer:
    """Return a layer with the times of equal layers at sizes at which it was not timed itself."""
    mine = {time.sizes for time in layer.times}
    return msgspec.structs.replace(layer, times=(*layer.times, *(time for time in others if time.sizes not in mine)))


def _share(path: Path, layers: Sequence[Layer]) -> None:
    """Leave the times of layers for other tasks."""
    known: dict[str, dict[tuple[int, ...], LayerTime]] = {}
    for layer in layers:
        known.setdefault(layer.shape, {}).update({time.sizes: time for time in layer.times})
    times = {shape: tuple(found.values()) for shape, found in known.items()}
    write_whole(path, to_json(SharedTimes(layers=_known(path) | times)))

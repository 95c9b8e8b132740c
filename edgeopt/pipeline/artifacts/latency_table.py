"""The latency table of a task's network on the build's device: made once, before any training, and kept.

The original's file and the file of a probe at other widths teach a ``Template``, which gives files at any widths
without another export. A handful of them run under ONNX Runtime's profiler. Times of layers are shared with other tasks
of the workspace, by the layer's shape.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from scipy.stats import qmc

from edgeopt.bench.nodes import FileTime, ProfilingTurns, node_shapes, profile_nodes
from edgeopt.device.base import Device as DeviceConnection
from edgeopt.errors import DeviceError, StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.model import save
from edgeopt.latency.fused_layers import FusedLayers
from edgeopt.latency.width_template import Sizes, Template, are_distinguishable
from edgeopt.pipeline.artifacts.networks import ExportedFile
from edgeopt.pipeline.artifacts.onnx_files import graph_steps
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.base import Record
from edgeopt.records.codec import digest, from_json, to_json
from edgeopt.records.groups import Dimension, GroupTable
from edgeopt.records.latency import LatencyTable, Layer, LayerTime, NoLatencyTable, WholeTime
from edgeopt.records.profile import Precision, Profile
from edgeopt.records.recipe import Compact, Quantize

_STAGE = "latency table"
BUDGET_SECONDS = 30.0
"""No further turn of timing begins after this."""
PROBES = 16
"""Choices of widths that are timed, the original among them: twice as many as a layer's time has parts."""
KNOWN_PROBES = 5
"""As many are timed where every layer is known from another task: the whole still has to be measured."""
KNOWN_TIMES = 10
"""A layer with so many times from another task is known."""
LEAST_RATIO = 0.1
_CALIBRATION_SAMPLES = 8
"""Ranges decide no latency."""
MOST_TEACHERS = 3
ATTEMPTS = 200

_Widths = dict[str, int]


class SharedTimes(Record, frozen=True, kw_only=True):
    """Times of layers by their shape, from every task of the workspace."""

    layers: dict[str, tuple[LayerTime, ...]]


def latency_table(
    build: Build, groups: GroupTable, exported: ExportedFile, precision: Precision
) -> LatencyTable | NoLatencyTable:
    """Return the table, from the ledger or measured now; nothing may train meanwhile.

    Args:
        build: The build.
        groups: Of the original network.
        exported: The original's file.
        precision: In which files are timed.

    Raises:
        DeviceLostError, WorkspaceError: the connection broke, or the disk is full; the next build begins the table
            again.
    """
    settings = (build.device.id, build.environment.onnxruntime, precision, build.profile.runtime,
                build.budget.batch_size, build.allow_fallback)  # fmt: skip
    key = digest(("latency", build.fingerprint, build.versions, settings))
    found = build.ledger.get("latency", key, LatencyTable) or build.ledger.get("no-latency", key, NoLatencyTable)
    if found is not None:
        return found
    folder = build.workspace.folder("stages") / f"latency-{key}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shared = build.workspace.folder("latency") / f"{digest(settings)}.json"
    try:
        table = run_step(_STAGE, _measure, build, groups, exported, precision, folder, shared)
    except (StepError, DeviceError) as error:
        missing = NoLatencyTable(reason=as_failed(error).reason)
        build.ledger.put("no-latency", key, missing)
        return missing
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    build.ledger.put("latency", key, table)
    _share(shared, table.layers)
    return table


def _measure(
    build: Build, groups: GroupTable, exported: ExportedFile, precision: Precision, folder: Path, shared: Path
) -> LatencyTable:
    begin = time.perf_counter()
    dimensions = moving_dimensions(groups)
    teachers = teaching_widths(groups, dimensions)
    sizes = Sizes(dimensions, teachers)
    template = Template(_teach(build, exported, precision, teachers[1:], folder), sizes)
    chain = FusedLayers(template.original, sizes, node_shapes(_write(template, teachers, folder), *_place(build)))
    probes = probing_widths(groups, build.profile.channel_step)
    files = _write(template, probes, folder)
    times = _time(build, files[:KNOWN_PROBES])
    layers = chain.layers(probes, times)
    known = _known(shared)
    if any(len(known.get(layer.shape, ())) < KNOWN_TIMES for layer in layers):
        left = build_seconds_left(begin)
        times = join_timings(times, _time(build, [files[0], *files[KNOWN_PROBES:]], left), KNOWN_PROBES)
        layers = chain.layers(probes, times)
    return LatencyTable(
        device=build.device.id,
        runtime=build.environment.onnxruntime,
        precision=precision,
        threads=build.profile.threads,
        batch_size=build.budget.batch_size,
        layers=tuple(_with(layer, known.get(layer.shape, ())) for layer in layers),
        wholes=tuple(WholeTime(widths=probes[one.file], ns=one.ns) for one in times),
        seconds=time.perf_counter() - begin,
    )


def build_seconds_left(begin: float) -> float:
    """Return for how many seconds more files may be timed."""
    return max(1.0, BUDGET_SECONDS - (time.perf_counter() - begin))


def _place(build: Build) -> tuple[DeviceConnection, Profile, int, tuple[str, ...], Path]:
    """Return where and how files run."""
    batch = build.budget.batch_size
    return build.connection, build.profile, batch, build.allow_fallback, build.data.timing_inputs(batch)


def _time(build: Build, files: Sequence[Path], seconds: float = BUDGET_SECONDS / 2) -> list[FileTime]:
    return profile_nodes(files, *_place(build), ProfilingTurns(budget_seconds=seconds))


def join_timings(first: Sequence[FileTime], second: Sequence[FileTime], offset: int) -> list[FileTime]:
    """Join times of two runs that both began with the original: the second is brought to the speed of the first.

    Args:
        first: With the original as file 0.
        second: With the original as file 0, and file ``offset`` of the whole as file 1.
        offset: See ``second``.
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


def teaching_widths(groups: GroupTable, dimensions: Sequence[Dimension]) -> list[_Widths]:
    """Return widths whose files show which size follows which group: those of the original, and one choice or more.

    Raises:
        StepError: no few choices do.
    """
    full, free = groups.widths(), groups.free
    rng = np.random.default_rng(0)
    for count in range(1, MOST_TEACHERS + 1):
        for _ in range(ATTEMPTS):
            ratios = rng.uniform(0.3, 0.95, (count, len(free)))
            others = [
                full
                | {group.name: max(1, round(ratio * group.channels)) for group, ratio in zip(free, row, strict=True)}
                for row in ratios
            ]
            if are_distinguishable(dimensions, [full, *others]):
                return [full, *others]
    raise StepError(_STAGE, "too many groups of channels have too few channels to tell their sizes apart.")


def probing_widths(groups: GroupTable, step: int) -> list[_Widths]:
    """Return the widths that are timed: the original's, then such that spread each group's over its range.

    A Latin hypercube gives each group every part of its range once, in an order of its own, so that each layer is seen
    at as many pairs of widths. They are multiples of ``step``, as the candidates' are: the device's coarser steps show.
    """
    full, free = groups.widths(), groups.free
    rows = qmc.LatinHypercube(max(1, len(free)), rng=0).random(PROBES - 1)
    found = [full]
    for row in rows:
        widths = {}
        for group, share in zip(free, row, strict=True):
            wanted = group.channels * (LEAST_RATIO + (1 - LEAST_RATIO) * float(share))
            widths[group.name] = min(group.channels, max(1, int(np.ceil(wanted / step)) * step))
        found.append(full | widths)
    return found


def _teach(
    build: Build, exported: ExportedFile, precision: Precision, others: Sequence[_Widths], folder: Path
) -> list[onnx.ModelProto]:
    """Return the files that a template learns from, in the precision asked for: the original's first."""
    sources = [build.workspace.artifact(exported.sha256)]
    sources += [folder / f"teacher{number}.onnx" for number in range(len(others))]
    job = protocol.ProbeJob(
        exporter=exported.exporter,
        widths=tuple(others),
        outs=tuple(str(path) for path in sources[1:]),
        max_opset=build.profile.max_opset,
        max_ir=build.profile.max_ir,
    )
    build.trainers.do(job, protocol.ProbeDone)
    steps = tuple(
        msgspec.structs.replace(step, samples=_CALIBRATION_SAMPLES) if isinstance(step, Quantize) else step
        for step in graph_steps(precision, build.profile)
        if not isinstance(step, Compact)
    )
    models = []
    for number, source in enumerate(sources):
        target = folder / f"made{number}.onnx"
        apply_steps(steps, source, target, calibration=build.data.calibration_file(_CALIBRATION_SAMPLES),
                    max_opset=build.profile.max_opset, max_ir=build.profile.max_ir)  # fmt: skip
        models.append(onnx.load_model(target))
    return models


def _write(template: Template, widths: Sequence[_Widths], folder: Path) -> list[Path]:
    paths = []
    for number, one in enumerate(widths):
        paths.append(folder / f"at-{len(widths)}-{number}.onnx")
        save(template.at(one), paths[-1])
    return paths


def _known(path: Path) -> dict[str, tuple[LayerTime, ...]]:
    """Return the times of layers that other tasks have left; none where there are none, or of another version."""
    try:
        return from_json(path.read_bytes(), SharedTimes).layers
    except (OSError, msgspec.DecodeError):
        return {}


def _with(layer: Layer, others: Sequence[LayerTime]) -> Layer:
    """Return a layer with the times of others like it, at sizes where it was not timed itself."""
    mine = {time.sizes for time in layer.times}
    return msgspec.structs.replace(layer, times=(*layer.times, *(time for time in others if time.sizes not in mine)))


def _share(path: Path, layers: Sequence[Layer]) -> None:
    """Leave the times of layers for other tasks."""
    known: dict[str, dict[tuple[int, ...], LayerTime]] = {}
    for layer in layers:
        known.setdefault(layer.shape, {}).update({time.sizes: time for time in layer.times})
    times = {shape: tuple(found.values()) for shape, found in known.items()}
    partial = path.with_suffix(".partial")
    partial.write_bytes(to_json(SharedTimes(layers=_known(path) | times)))
    partial.replace(path)

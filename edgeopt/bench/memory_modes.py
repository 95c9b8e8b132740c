"""How much memory an app can save: peaks with and without the arena, re-packed weights and copied weights.

In: a model and a profile. Out: one ``MemoryMode`` for each of the eight combinations.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeopt.bench.memory import PROCESSES, RUNS, STEADY_MALLOC, median_of
from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.records.base import Record

_STAGE = "memory"
_MEDIAN_FIELDS = ("load_peak_bytes", "run_peak_bytes", "load_mapped_bytes", "run_mapped_bytes", "run_cpu_ns")


class MemoryMode(Record, frozen=True, kw_only=True):
    """One way to run a file, and its peaks above a process without a session."""

    memory_arena: bool
    prepacking: bool
    """Whether kernels may re-pack weights (``session.disable_prepacking``)."""
    weights: Literal["copied", "mapped"]
    """Copied from the ``.onnx``, or mapped into memory from an ``.ort`` that was made on the device beforehand."""
    load_peak_bytes: int
    run_peak_bytes: int
    load_mapped_bytes: int
    """The part of the load's peak that is pages of the file itself: the system may drop them at any time and read them
    again. How many extra pages it reads is up to the system (Linux reads up to 2 MB for one byte)."""
    run_mapped_bytes: int
    """The same for the run's peak."""
    run_cpu_ns: int
    """Median CPU time of a few runs: enough to see the cost of a mode, not to rank modes."""


def measure_memory_modes(
    model: Path,
    target: RunTarget,
    *,
    processes: int = PROCESSES,
    progress: Callable[[str], None],
) -> tuple[MemoryMode, ...] | None:
    """Measure a file's memory in every mode, in fresh processes; the first mode is ONNX Runtime's default.

    Modes take turns, process by process, and each mode's median counts.

    Args:
        model: An ``.onnx`` file.
        target: Where and how it runs; the profile's own arena setting is one of the modes.
        processes: Fresh processes for each mode.
        progress: Called with a few words on the current step.

    Returns:
        None if the device can't measure memory.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    request = msgspec.structs.replace(runtime_request("memory", model, target), min_runs=RUNS, min_seconds=0.0)
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        mapped = str(Path(folder) / "model.ort")
        progress("memory, writing the .ort")
        conversion = msgspec.structs.replace(request, mode="convert", inputs="", outputs=mapped)
        run_request(target.device, conversion, _STAGE, seconds=request.max_seconds)
        modes = list(itertools.product((str(model), mapped), (True, False), (True, False)))
        answers: list[list[dict[str, Any]]] = [[] for _ in modes]
        for turn, (index, (path, prepacking, arena)) in itertools.product(range(processes), enumerate(modes)):
            progress(f"memory, process {turn * len(modes) + index + 1} of {processes * len(modes)}")
            mode_request = msgspec.structs.replace(request, model=path, prepacking=prepacking, memory_arena=arena)
            answer = run_request(
                target.device, mode_request, _STAGE, seconds=request.max_seconds, variables=STEADY_MALLOC
            )
            if not answer["supported"]:
                return None
            answers[index].append(answer)
    return tuple(
        MemoryMode(
            memory_arena=arena,
            prepacking=prepacking,
            weights="mapped" if path == mapped else "copied",
            **{name: median_of(mode_answers, name) for name in _MEDIAN_FIELDS},
        )
        for (path, prepacking, arena), mode_answers in zip(modes, answers, strict=True)
    )

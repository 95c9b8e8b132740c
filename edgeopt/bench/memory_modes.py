"""What an app can save: peak memory with arena, re-packed and copied weights, and without each."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeopt.bench.memory import PROCESSES, RUNS, STEADY_MALLOC
from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.device.base import Device
from edgeopt.records.base import Record
from edgeopt.records.profile import Profile

_STAGE = "memory"


class MemoryMode(Record, frozen=True, kw_only=True):
    """One way to run a file, and its peaks over a process without a session."""

    memory_arena: bool
    prepacking: bool
    """Whether kernels may re-pack weights (``session.disable_prepacking``)."""
    weights: Literal["copied", "mapped"]
    """Copied from the ``.onnx``, or left in an ``.ort`` made ahead on the device, mapped into memory."""
    load_peak_bytes: int
    run_peak_bytes: int
    load_mapped_bytes: int
    """Of the load's peak, pages of the file itself, which the system may drop at any time and read again. How many come
    in beside those that are needed is up to the system (Linux brings up to 2 MB for one byte)."""
    run_mapped_bytes: int
    """The same of the run's peak."""
    run_cpu_ns: int
    """CPU time of one run, from a few: enough to see what a mode costs, not to rank."""


def measure_memory_modes(
    model: Path,
    device: Device,
    profile: Profile,
    *,
    batch_size: int,
    allow_fallback: tuple[str, ...],
    inputs: Path | None,
    processes: int = PROCESSES,
    progress: Callable[[str], None],
) -> tuple[MemoryMode, ...] | None:
    """Weigh a file in every mode, in fresh processes; the first is ONNX Runtime's default.

    Modes take turns, process by process, and the median of each counts.

    Args:
        model: An ``.onnx`` file.
        device: Where the workers run.
        profile: Providers, threads and graph level; its own arena setting is one of the modes.
        batch_size: Samples a run.
        allow_fallback: As in ``edgeopt.bench.measure.measure``.
        inputs: A ``.npz`` with one array for each graph input; None for random values.
        processes: Fresh ones of each mode.
        progress: Is told in a few words what happens now.

    Returns:
        None where the device cannot tell its memory.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    request = runtime_request(
        "memory", str(model), profile, allow_fallback=allow_fallback, batch_size=batch_size,
        inputs=str(inputs) if inputs else "",
    )  # fmt: skip
    request = msgspec.structs.replace(request, min_runs=RUNS, min_seconds=0.0)
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        mapped = str(Path(folder) / "model.ort")
        progress("memory, writing the .ort")
        converting = msgspec.structs.replace(request, mode="convert", inputs="", outputs=mapped)
        run_request(device, converting, _STAGE, seconds=request.max_seconds)
        modes = list(itertools.product((str(model), mapped), (True, False), (True, False)))
        answers: list[list[dict[str, Any]]] = [[] for _ in modes]
        for turn, (index, (path, prepacking, arena)) in itertools.product(range(processes), enumerate(modes)):
            progress(f"memory, process {turn * len(modes) + index + 1} of {processes * len(modes)}")
            asked = msgspec.structs.replace(request, model=path, prepacking=prepacking, memory_arena=arena)
            answer = run_request(device, asked, _STAGE, seconds=request.max_seconds, variables=STEADY_MALLOC)
            if not answer["supported"]:
                return None
            answers[index].append(answer)
    return tuple(
        MemoryMode(
            memory_arena=arena,
            prepacking=prepacking,
            weights="mapped" if path == mapped else "copied",
            **{name: _median(found, name) for name in MEDIANS},
        )
        for (path, prepacking, arena), found in zip(modes, answers, strict=True)
    )


MEDIANS = ("load_peak_bytes", "run_peak_bytes", "load_mapped_bytes", "run_mapped_bytes", "run_cpu_ns")


def _median(answers: list[dict[str, Any]], key: str) -> int:
    return int(statistics.median(answer[key] for answer in answers))

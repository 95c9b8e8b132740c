"""What a model's size rules out: training beyond the memory, int8 beyond one file, many files at a time."""

from __future__ import annotations

import os
from pathlib import Path

from edgeopt.model_files.layout import measure_bytes, weight_files
from edgeopt.pipeline.artifacts.networks import ExportedFile, StoredNetwork
from edgeopt.pipeline.context import Build

_TRAINING_COPIES = 7
"""Copies of a network's float32 weights while one of its size trains: the original in this process and in the one that
trains, the network itself, its gradients, the optimizer's two moments, and the weights of the epoch that is kept."""
_STEP_COPIES = 4
"""Copies of a file's bytes that a graph step holds at a time, in this process or in its own."""
_LARGE_PARAMETERS = 2**27
"""Below this many, activations are what takes memory, and a training that needs too much fails by itself."""


def may_train(build: Build, original: StoredNetwork) -> bool:
    """Tell whether candidates are trained: the task can be, and this machine's memory is enough."""
    return build.data.task.training is not None and not _exceeds_memory(build, original)


def size_notes(build: Build, original: StoredNetwork, exported: ExportedFile) -> tuple[str, ...]:
    """Return what the report has to say about the size of a build's model."""
    notes = []
    if build.data.task.training is not None and _exceeds_memory(build, original):
        notes.append(
            f"Not pruned or trained: with {original.parameters / 1e9:.2f} billion parameters that takes at least "
            f"{_training_bytes(original) / 1e9:.0f} GB ({_TRAINING_COPIES} copies of the weights), and this machine "
            f"has {total_memory_bytes() / 1e9:.0f} GB. Build it on one with more."
        )
    if is_pair(build, exported) and "int8" in build.profile.precisions:
        notes.append(
            "Int8 was tried for the weights only, each rounded to the nearest step: onnxruntime's quantizer loads at "
            "most 2 GiB, so activations stay float32."
        )
    return tuple(notes)


def is_pair(build: Build, exported: ExportedFile) -> bool:
    """Tell whether an exported file keeps its weights in another one, because they do not fit."""
    return bool(weight_files(build.workspace.artifact(exported.sha256)))


def files_at_a_time(build: Build, exported: ExportedFile, most: int, candidates: int) -> int:
    """Return how many files of a network are made in parallel: those whose steps fit into half of the memory.

    Args:
        build: The build.
        exported: The network's exported file.
        most: As many as there are cores for.
        candidates: Networks whose files are made at the same time.
    """
    needed = _STEP_COPIES * measure_bytes(build.workspace.artifact(exported.sha256)) * candidates
    return max(1, min(most, int(total_memory_bytes() / 2 / needed)))


def _training_bytes(original: StoredNetwork) -> int:
    return _TRAINING_COPIES * 4 * original.parameters


def _exceeds_memory(build: Build, original: StoredNetwork) -> bool:
    """Tell whether training needs more memory than the machine has; a GPU has memory of its own."""
    if build.gpus or original.parameters < _LARGE_PARAMETERS:
        return False
    return _training_bytes(original) > total_memory_bytes()


def total_memory_bytes() -> float:
    """Return the memory of this machine, or of the container that this process is in."""
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    container = Path("/sys/fs/cgroup/memory.max")
    if container.is_file() and (text := container.read_text().strip()).isdigit():
        limits.append(float(text))
    return min(limits)

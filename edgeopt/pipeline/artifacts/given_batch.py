"""Whether a given file whose fixed batch was made dynamic computes the same for each sample as before.

In: a build and its ``OnnxTask``. Out: a note for the report, or an error that says why not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.bench.outputs import run_arrays
from edgeopt.errors import StepError, TaskError
from edgeopt.graph.given.files import one_file, read_given
from edgeopt.graph.preparation.operator_sets import are_same_outputs
from edgeopt.pipeline.artifacts.device_parity import host_target
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.evaluation import NamedArrays
from edgeopt.tasks.given.onnx_file import OnnxTask

_STAGE = "evaluate"
_SMALL_BATCH = 2


def check_opened_batch(build: Build, task: OnnxTask, opened: Path) -> tuple[str, ...]:
    """Run the file at two batch sizes, and the user's own on the same samples; return a note.

    Args:
        build: The build.
        task: Of the file; without an opened batch nothing is checked.
        opened: The file with a dynamic batch.

    Raises:
        TaskError: the outputs of a sample are not the same, or there are too few samples to tell.
    """
    size, measured = task.given.opened_batch, build.budget.batch_size
    if size is None:
        return ()
    reason, samples = _find_difference(build, task, opened, size)
    if reason:
        raise TaskError(
            f"{task.path} takes {size} sample{'s' if size > 1 else ''} at a time, but the target's latency is that of "
            f"{measured}. With a dynamic batch in its place, {reason}. Export it with a dynamic batch, or set "
            f"batch_size = {size} under [limits] in a target of your own (`edgeopt targets new`)."
        )
    return (
        f"the file takes {size} sample{'s' if size > 1 else ''} at a time; its batch was made dynamic, and {samples} "
        f"samples in batches of {_SMALL_BATCH} and more have the same outputs as before",
    )


def _find_difference(build: Build, task: OnnxTask, opened: Path, size: int) -> tuple[str, int]:
    """Return what is different with another batch size (empty if nothing is), and the number of samples compared."""
    group = max((step.group for step in task.selecting if not step.continues), key=lambda one: one.samples)
    count = min(group.samples, max(build.budget.batch_size, _SMALL_BATCH * size)) // size * size
    if count < _SMALL_BATCH:
        return f"there are too few inputs to tell whether it computes the same: give {_SMALL_BATCH} or more", count
    axes = task.axes_of_inputs
    alone = [group.cut(start, start + size, axes).inputs for start in range(0, count, size)]
    sizes = sorted({_SMALL_BATCH, count} - {size})
    try:
        with one_file(task.path, read_given(task.path)) as original:
            before = run_step(_STAGE, run_arrays, original, alone, host_target(build), _STAGE)
        for batch in sizes:
            starts = range(0, count, batch)
            parts = [group.cut(start, min(start + batch, count), axes).inputs for start in starts]
            after = run_step(_STAGE, run_arrays, opened, parts, host_target(build), _STAGE)
            different = [name for name in before[0] if not _are_same(_all(before, name), _all(after, name))]
            if different:
                return f"output '{different[0]}' of a sample is not the same in a batch of {batch}", count
    except StepError as error:
        return f"it does not run ({error.reason.replace(str(opened), task.path.name)})", count
    return "", count


def _all(found: Sequence[NamedArrays], name: str) -> list[NDArray[Any]]:
    return [np.asarray(one[name]) for one in found]


def _are_same(before: list[NDArray[Any]], after: list[NDArray[Any]]) -> bool:
    """Tell whether parts of an output, one after the other along its samples, are the same."""
    for axis in (0, 1):
        if any(part.ndim <= axis for part in (*before, *after)):
            return False
        shapes = {tuple(np.delete(part.shape, axis)) for part in (*before, *after)}
        if len(shapes) == 1 and are_same_outputs(np.concatenate(before, axis), np.concatenate(after, axis)):
            return True
    return False

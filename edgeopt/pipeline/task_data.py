"""A task's data as files that workers read: evaluation, parity, calibration and test inputs, and the fingerprint.

No torch tensor and no user code goes further than this module.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.bench.outputs import write_batches
from edgeopt.bench.requests import file_sha256
from edgeopt.pipeline.evaluation import EvaluationSet, NamedArrays
from edgeopt.pipeline.onnx_teacher import STAGE, teacher_files
from edgeopt.store.workspace import Workspace
from edgeopt.task import CheckedTask, to_numpy
from edgeopt.tasks.onnx_file import OnnxTask

PARITY_SAMPLES = 32
"""Real samples on which stages are compared; enough to reach every branch of a network, few enough to be quick."""
GOLDEN_SAMPLES = 8


def update_digest(digest: Any, arrays: Iterable[NDArray[Any]]) -> None:
    """Feed arrays, with dtype and shape, to a hash."""
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())


class TaskData(EvaluationSet):
    """What every task gives to the rest of the pipeline.

    Args:
        task: The user's task, or a given ``.onnx``.
        workspace: Keeps the files, named by the fingerprint.
    """

    def __init__(self, task: CheckedTask | OnnxTask, workspace: Workspace) -> None:
        super().__init__(task)
        self.folder = workspace.folder("arrays")
        self.fingerprint = self._fingerprint()
        self.eval_file = self._keep("eval", self.inputs)
        self.parity_file = self._keep("parity", [self._first(PARITY_SAMPLES)])

    def _first(self, samples: int) -> NamedArrays:
        return {name: values[:samples] for name, values in self.inputs[0].items()}

    def _keep(self, name: str, batches: Sequence[NamedArrays]) -> Path:
        path = self.folder / f"{name}-{self.fingerprint}.npz"
        if not path.exists():
            partial = path.with_suffix(".partial.npz")
            write_batches(partial, batches)
            partial.replace(path)
        return path

    def _fingerprint(self) -> str:
        """Name the task by its model (weights and source), its teacher, its data and its score function."""
        digest = hashlib.sha256()
        for batch, target in zip(self.inputs, self.targets or [None] * len(self.inputs), strict=True):
            update_digest(digest, batch.values())
            update_digest(digest, [np.asarray(value) for value in _leaves(target)])
        if isinstance(self.task, OnnxTask):
            digest.update(self.task.path.read_bytes())
            update_digest(digest, self.task.calibration_arrays.values())
            return digest.hexdigest()[:20]
        task = self.task
        model = self._user("build_model()", lambda: task.model)
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode())
            update_digest(digest, [to_numpy(value)])
        for kind in sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__):
            if not kind.__module__.startswith("torch."):
                digest.update(_source(kind).encode())
        if task.source_file is not None:
            digest.update(task.source_file.read_bytes())
        for path in teacher_files(task):
            digest.update(file_sha256(path, STAGE).encode())
        first = self._user("train_batches()", self._arrays, lambda: task.train_epoch(0), 1)
        update_digest(digest, first[0][0].values())
        return digest.hexdigest()[:20]

    @cached_property
    def golden_inputs(self) -> NamedArrays:
        """The example inputs, which the bundle ships."""
        if isinstance(self.task, OnnxTask):
            return self._first(GOLDEN_SAMPLES)
        return dict(zip(self.task.input_names, (to_numpy(v) for v in self.task.example_inputs), strict=True))

    def timing_inputs(self, batch_size: int) -> Path:
        """Return the file of one batch of real inputs; samples repeat where the first batch has too few."""
        index = np.arange(batch_size) % len(next(iter(self.inputs[0].values())))
        return self._keep(f"timing{batch_size}", [{name: values[index] for name, values in self.inputs[0].items()}])

    def calibration_file(self, samples: int) -> Path:
        """Return the file of inputs that calibrate int8."""
        path = self.folder / f"calibration{samples}-{self.fingerprint}.npz"
        if path.exists():
            return path
        if isinstance(self.task, OnnxTask):
            given = self.task.calibration_batches()
            return self._keep(f"calibration{samples}", given[: max(1, samples // len(given[0]))])
        found = self._user("calibration_batches()", self._arrays, self.task.calibration_batches, samples)
        return self._keep(f"calibration{samples}", [inputs for inputs, _ in found])

    def test_set(self) -> tuple[Path, list[Any]] | None:
        """Return the file and the targets of the test batches, or None where the task has none."""
        if isinstance(self.task, OnnxTask):
            return None
        batches = self._user("test_batches()", self.task.test_batches)
        if batches is None:
            return None
        found = self._user("test_batches()", self._arrays, lambda: batches)
        return self._keep("test", [inputs for inputs, _ in found]), [targets for _, targets in found]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [] if value is None else [value]


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return kind.__qualname__

"""A task's data as files that workers read: evaluation, parity, calibration and test inputs.

In: a task. Out: ``.npz`` files in the workspace, and a fingerprint of the task. Torch tensors and user code go no
further than this module.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.bench.outputs import write_batches
from edgeopt.bench.requests import file_sha256
from edgeopt.bundle.stated_inputs import GoldenInput, StatedInputs, compare_inputs
from edgeopt.graph.counting.macs import count_macs
from edgeopt.graph.model import separate_names
from edgeopt.model_files.tensors import copy_model_proto
from edgeopt.pipeline.evaluation import EvaluationSet, NamedArrays
from edgeopt.pipeline.judged_sizes import DimensionSizes, dynamic_dims, parity_sizes, resize_arrays
from edgeopt.pipeline.onnx_teacher import TEACHER_STAGE, teacher_files
from edgeopt.store.files import write_whole
from edgeopt.store.workspace import Workspace
from edgeopt.task import CheckedTask
from edgeopt.task.nesting import tensors_of, words_of
from edgeopt.task.values import to_numpy
from edgeopt.tasks.given.onnx_file import OnnxTask

OWN_METADATA = "edgeopt."
"""Names in a file's metadata that begin so are written by a build."""
_PARITY_SAMPLES, _MIN_PARITY_SAMPLES = 32, 4
_MAX_PARITY_WORK = 50_000_000_000
"""Of one run over these samples (``MacCount.work``): about a second. Large networks are compared on fewer."""
"""Real samples on which files are compared with the network: enough to reach every branch, few enough to be quick."""
_GOLDEN_SAMPLES = 8
_GOLDEN_BYTES = 2**22
"""Of the golden inputs, if one sample is not larger."""
_BATCH_FILE_FORMAT = b"batch files with names.json; norms of given files"
"""Part of the fingerprint: a workspace may hold files of an older format under names that would be taken for new."""


class TaskData(EvaluationSet):
    """The data of a task, for the rest of the pipeline.

    Args:
        task: The user's task, or a given ``.onnx``.
        workspace: Keeps the files, named by the fingerprint.
    """

    def __init__(self, task: CheckedTask | OnnxTask, workspace: Workspace) -> None:
        super().__init__(task)
        self.folder = workspace.folder("arrays")
        self.fingerprint = self._fingerprint()
        self.eval_file = self._store("eval", self.fed_inputs)

    @cached_property
    def parity_file(self) -> Path:
        """The file of real samples on which files are compared with the network."""
        if isinstance(self.task, OnnxTask):
            return self._store("parity", self.task.parity_batches(self._count_parity_samples(self.task)))
        first = self._first_samples(_PARITY_SAMPLES)
        sizes = parity_sizes(self.task, self.inputs)
        return self._store("parity", [resize_arrays(self.task, first, one) for one in sizes])

    def _count_parity_samples(self, task: OnnxTask) -> int:
        """Return on how many samples files are compared: a build does that about a hundred times."""
        (batch, *_) = task.parity_batches(1)
        shapes = {
            name: tuple(1 if number == axis else size for number, size in enumerate(array.shape))
            for (name, array), axis in zip(batch.items(), task.axes.inputs, strict=False)
        }
        model = copy_model_proto(task.given.model)
        separate_names(model.graph)
        work = count_macs(model, shapes).work
        return min(_PARITY_SAMPLES, max(_MIN_PARITY_SAMPLES, _MAX_PARITY_WORK // max(1, work)))

    def _first_samples(self, count: int) -> NamedArrays:
        return self._take(self.inputs[0], range(min(count, self.task.axes.count(self.inputs[0]))))

    def _take(self, batch: NamedArrays, index: Sequence[int] | NDArray[np.int64]) -> NamedArrays:
        """Return some samples of a batch."""
        return dict(zip(batch, self.task.axes.take(list(batch.values()), index), strict=True))

    def _store(self, name: str, batches: Sequence[NamedArrays]) -> Path:
        path = self.folder / f"{name}-{self.fingerprint}.npz"
        if not path.exists():
            write_whole(path, lambda partial: write_batches(partial, batches))
        return path

    def _fingerprint(self) -> str:
        """Return a hash of the task's model (weights and source), teacher, data and score function."""
        digest = hashlib.sha256(_BATCH_FILE_FORMAT)
        for batch, target in zip(self.inputs, self.targets or [None] * len(self.inputs), strict=True):
            _update_digest(digest, batch.values())
            _update_digest(digest, tensors_of(target))
            digest.update(repr(words_of(target)).encode())
        if isinstance(self.task, OnnxTask):
            digest.update(self.task.sha256.encode())
            digest.update(f"{sorted(self.task.states.items())}{self.task.input_axes}".encode())
            wish = self.task.score_wish  # it helps to choose an epoch; its name does without labels only
            digest.update(f"{wish.output}{None if self.targets else wish.score}".encode())
            for batch in self.task.calibration_batches():
                _update_digest(digest, batch.values())
            for group in self.task.split.training:
                _update_digest(digest, group.inputs.values())
            return digest.hexdigest()[:20]
        task = self.task
        model = self._call_user("build_model()", lambda: task.model)
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode())
            _update_digest(digest, [to_numpy(value)])
        for module_type in sorted({type(module) for module in model.modules()}, key=lambda each: each.__qualname__):
            if not module_type.__module__.startswith("torch."):
                digest.update(_source_code(module_type).encode())
        if task.source_file is not None:
            digest.update(task.source_file.read_bytes())
        for path in teacher_files(task):
            digest.update(file_sha256(path, TEACHER_STAGE).encode())
        if self.states:
            digest.update(f"{sorted(self.states.items())}{self.continues}".encode())
        first = self._call_user("train_batches()", self._to_arrays, lambda: task.train_epoch(0), 1)
        _update_digest(digest, first[0][0].values())
        return digest.hexdigest()[:20]

    @cached_property
    def given_metadata(self) -> dict[str, str]:
        """The metadata of a given file, which its apps may read, without what an earlier build wrote."""
        if not isinstance(self.task, OnnxTask):
            return {}
        found = {entry.key: entry.value for entry in self.task.given.model.metadata_props}
        return {key: value for key, value in found.items() if not key.startswith(OWN_METADATA)}

    @cached_property
    def stated_inputs(self) -> StatedInputs:
        """What the task states of its inputs, compared with the golden ones."""
        golden = self.golden_inputs
        facts = zip(golden.items(), self.task.axes.inputs, dynamic_dims(self.task), strict=False)
        return compare_inputs(
            self.task.preprocessing,
            {name: GoldenInput(values, axis, bool(dims)) for (name, values), axis, dims in facts},
            only_file=self.task.kind == "onnx",
        )

    @cached_property
    def golden_inputs(self) -> NamedArrays:
        """The golden inputs of the bundle: samples that select, of as many classes as there is room for."""
        if isinstance(self.task, OnnxTask) and self.task.states:
            return self._first_samples(self.task.fixed_batch or _GOLDEN_SAMPLES)
        if isinstance(self.task, CheckedTask) and self.task.shows_own_inputs:
            pairs = self._call_user("golden_inputs()", self._to_arrays, self.task.golden_batches)
            shown: NamedArrays = pairs[0][0]
            return shown
        counts = [self.task.axes.count(batch) for batch in self._alike]
        sample_bytes = sum(array.nbytes for array in self._alike[0].values()) // counts[0]
        wanted = min(_GOLDEN_SAMPLES, max(1, _GOLDEN_BYTES // max(1, sample_bytes)), sum(counts))
        if isinstance(self.task, OnnxTask):
            wanted = self.task.fixed_batch or wanted
        chosen = choose_spread(self._classes, sum(counts), wanted)
        starts = np.cumsum([0, *counts])
        parts = []
        for batch, start, stop in zip(self._alike, starts, starts[1:], strict=False):
            rows = [row - start for row in chosen if start <= row < stop]
            if rows:
                parts.append(self._take(batch, rows))
        axes = dict(zip(self._alike[0], self.task.axes.inputs, strict=True))
        return {
            name: parts[0][name] if axis is None else np.concatenate([part[name] for part in parts], axis)
            for name, axis in axes.items()
        }

    @property
    def _alike(self) -> list[NamedArrays]:
        """The batches whose samples have the shapes of the first."""
        batches = [batch for batch in self.inputs if self.task.axes.count(batch)]
        first = self._sample_shapes_of(batches[0])
        return [batch for batch in batches if self._sample_shapes_of(batch) == first]

    def _sample_shapes_of(self, batch: NamedArrays) -> list[tuple[int, ...]]:
        return [values.shape for values in self._take(batch, [0]).values()]

    @property
    def _classes(self) -> NDArray[Any] | None:
        """The class of each sample of ``_alike``; None if targets are something else."""
        alike = {id(batch) for batch in self._alike}
        found = []
        for batch, target in zip(self.inputs, self.targets, strict=False):
            if id(batch) not in alike:
                continue
            values = tensors_of(target)
            count = self.task.axes.count(batch)
            if len(values) != 1 or values[0].dtype.kind not in "iu" or values[0].size != count:
                return None
            found.append(values[0].reshape(-1))
        return np.concatenate(found) if found else None

    def _batch_of(self, sizes: DimensionSizes) -> NamedArrays:
        """Return the first batch of these sizes, or else the first of all."""
        dims = dynamic_dims(self.task)
        for batch in self.inputs:
            arrays = zip(batch.values(), dims, strict=True)
            if all(array.shape[dim] == sizes.get(axis.name) for array, one in arrays for dim, axis in one.items()):
                return batch
        return self.inputs[0]

    def sample_shapes(self, sizes: DimensionSizes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one sample of the inputs, at the given sizes of dynamic dimensions."""
        sample = resize_arrays(self.task, self._take(self._batch_of(sizes), [0]), sizes)
        return {name: values.shape for name, values in sample.items()}

    def timing_inputs(self, batch_size: int, sizes: DimensionSizes) -> Path:
        """Return the file of one batch of real inputs; samples repeat if the first batch has too few.

        Args:
            batch_size: Samples.
            sizes: Of the dynamic dimensions besides the batch.
        """
        whole = self._batch_of(sizes)
        index = np.arange(batch_size) % self.task.axes.count(whole)
        batch = resize_arrays(self.task, self._take(whole, index), sizes)
        name = "-".join([f"timing{batch_size}", *(f"{key}{size}" for key, size in sorted(sizes.items()))])
        return self._store(name, [batch])

    def calibration_file(self, samples: int) -> Path:
        """Return the file of inputs that calibrate int8."""
        path = self.folder / f"calibration{samples}-{self.fingerprint}.npz"
        with self.lock:
            return path if path.exists() else self._make_calibration_file(samples)

    def _make_calibration_file(self, samples: int) -> Path:
        if isinstance(self.task, OnnxTask):
            given = self.task.calibration_batches()
            ends = np.cumsum([self.task.axes.count(batch) for batch in given])
            return self._store(f"calibration{samples}", given[: max(1, int(np.count_nonzero(ends <= samples)))])
        pairs = self._call_user("calibration_batches()", self._to_arrays, self.task.calibration_batches, samples)
        return self._store(f"calibration{samples}", [inputs for inputs, _ in pairs])

    def training_inputs(self) -> Iterator[NamedArrays]:
        """Yield the inputs of one epoch of the training data; of a given ``.onnx``, those that train or calibrate."""
        if isinstance(self.task, OnnxTask):
            yield from self.task.calibration_batches()
            yield from (group.inputs for group in self.task.split.training)
            return
        batches = self._call_user("train_batches()", self.task.train_epoch, 0)
        while (batch := self._call_user("train_batches()", next, batches, None)) is not None:
            yield dict(zip(self.task.input_names, map(to_numpy, batch[0]), strict=True))

    @cached_property
    def training_file(self) -> Path:
        """The file of a few samples of ``training_inputs``."""
        path = self.folder / f"training-{self.fingerprint}.npz"
        with self.lock:
            if path.exists():
                return path
            first = next(iter(self.training_inputs()))
            count = self.task.axes.count(first)
            fixed = self.task.fixed_batch if isinstance(self.task, OnnxTask) else None
            return self._store("training", [self._take(first, range(fixed or min(_PARITY_SAMPLES, count)))])

    def test_set(self) -> tuple[Path, list[Any]] | None:
        """Return the file and the targets of the test batches, or None if the task has none."""
        if isinstance(self.task, OnnxTask):
            return None
        steps = self._call_user("test_batches()", self.task.test_steps)
        if steps is None:
            return None
        found = self._call_user("test_batches()", self._to_steps, lambda: steps)
        fed = self.without_fed_states([inputs for (inputs, _), _ in found], [continues for _, continues in found])
        return self._store("test", fed), [targets for (_, targets), _ in found]


def choose_spread(classes: NDArray[Any] | None, samples: int, wanted: int) -> list[int]:
    """Return the numbers of samples, in order, that show the most classes; spread evenly where classes do not decide.

    Args:
        classes: Of each sample; None if there are none.
        samples: How many there are.
        wanted: How many to return, at most ``samples``.
    """
    chosen: list[int] = []
    if classes is not None:
        _, firsts = np.unique(classes, return_index=True)
        chosen = firsts[_evenly(len(firsts), min(wanted, len(firsts)))].tolist()
    others = np.setdiff1d(np.arange(samples), chosen)
    return sorted([*chosen, *others[_evenly(len(others), wanted - len(chosen))].tolist()])


def _evenly(count: int, wanted: int) -> NDArray[np.int64]:
    return np.arange(wanted) * count // max(1, wanted)


def _update_digest(digest: Any, arrays: Iterable[NDArray[Any]]) -> None:
    """Feed arrays, with dtype and shape, to a hash."""
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())


def _source_code(module_type: type) -> str:
    try:
        return inspect.getsource(module_type)
    except (OSError, TypeError):
        return module_type.__qualname__

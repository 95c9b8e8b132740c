"""A teacher that is given as ``.onnx``: its bytes name the task, it is checked before any training, and it is run.

It runs in processes of their own under ONNX Runtime on this machine's CPU, a chunk of batches at a time through files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import Tensor

from edgeopt.bench.outputs import MAX_SECONDS, read_batches, write_batches
from edgeopt.bench.requests import run_request
from edgeopt.device.base import WorkerRequest
from edgeopt.device.local import LocalDevice
from edgeopt.errors import StepError, TaskError
from edgeopt.graph.model import graphs
from edgeopt.passes.distill.teacher import Inputs, Outputs, Teacher
from edgeopt.task import CheckedTask, to_numpy

STAGE = "teacher"
CHUNK_BYTES = 32_000_000
"""Of inputs: enough that starting a process and loading the file costs little beside the runs."""


class OnnxTeacher(Teacher):
    """The teacher file of a task.

    Args:
        task: It names the file.
        folder: Where inputs and outputs pass through files.

    Raises:
        TaskError: the file is missing, is no ONNX model, or has other inputs or outputs than the model, or a fixed
            batch.
    """

    chunk_bytes = CHUNK_BYTES

    def __init__(self, task: CheckedTask, folder: Path) -> None:
        assert task.teacher is not None
        self.path = task.teacher
        self.what = f"{task.spec}: the teacher {self.path}"
        self.folder = folder
        graph = read_teacher(task).graph
        stored = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in stored]
        self.inputs = self._in_order("inputs", [value.name for value in inputs], task.input_names)
        self.outputs = self._in_order("outputs", [value.name for value in graph.output], task.output_names)
        for value in inputs:
            dims = value.type.tensor_type.shape.dim
            if dims and dims[0].HasField("dim_value"):
                raise TaskError(
                    f"{self.what} has a fixed batch of {dims[0].dim_value} (input '{value.name}'). Export it with a "
                    "dynamic first dimension (`dynamic_shapes` of torch.onnx.export)."
                )

    def _in_order(self, which: str, found: list[str], wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Return the file's names in the order of the model's: by name where they are the same, else as they come."""
        if len(found) != len(wanted):
            raise TaskError(
                f"{self.what} has {len(found)} {which} ({', '.join(found)}) where the model has {len(wanted)} "
                f"({', '.join(wanted)}). A teacher takes and gives what the model does."
            )
        return wanted if set(found) == set(wanted) else tuple(found)

    def run(self, batches: Sequence[Inputs]) -> list[Outputs]:
        """Run all ``batches`` in one fresh process.

        Raises:
            StepError: ONNX Runtime cannot load or run the file.
            DeviceError: the process died or hung.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="chunk-", dir=self.folder) as folder:
            inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
            write_batches(inputs, (dict(zip(self.inputs, map(to_numpy, batch), strict=True)) for batch in batches))
            request = WorkerRequest(
                mode="outputs", model=str(self.path), inputs=str(inputs), outputs=str(outputs),
                providers=("CPUExecutionProvider",),
            )  # fmt: skip
            run_request(LocalDevice(), request, STAGE, seconds=MAX_SECONDS)
            return [tuple(torch.from_numpy(found[name]) for name in self.outputs) for found in read_batches(outputs)]


def read_teacher(task: CheckedTask) -> onnx.ModelProto:
    """Read a task's teacher, without weights that are kept in other files.

    Raises:
        TaskError: the file is missing, or is no ONNX model.
    """
    path = task.teacher
    assert path is not None
    if not path.is_file():
        raise TaskError(f"{task.spec}: the teacher {path} does not exist (looked for {path.absolute()}).")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise TaskError(f"{task.spec}: the teacher {path} cannot be read as an ONNX model ({error}).") from error
    if not model.graph.node:
        raise TaskError(f"{task.spec}: the teacher {path} cannot be read as an ONNX model (it holds no graph).")
    return model


def teacher_files(task: CheckedTask) -> list[Path]:
    """Return every file that the teacher's outputs depend on: the ``.onnx`` and those that keep weights beside it.

    Raises:
        TaskError: one is missing, or the ``.onnx`` is no ONNX model.
    """
    if task.teacher is None:
        return []
    tensors = [tensor for graph in graphs(read_teacher(task).graph) for tensor in graph.initializer]
    names = {ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)}
    beside = [task.teacher.parent / name for name in sorted(names)]
    for path in beside:
        if not path.is_file():
            raise TaskError(f"{task.spec}: the teacher {task.teacher} keeps weights in {path}, which does not exist.")
    return [task.teacher, *beside]


def check_teacher(task: CheckedTask, folder: Path) -> None:
    """Run a task's teacher, if it has one, on the example inputs, and compare its outputs with the model's in shape.

    Raises:
        TaskError: it does not run, or gives something else.
    """
    if task.teacher is None:
        return
    teacher = OnnxTeacher(task, folder)
    try:
        (found,) = teacher.run([task.example_inputs])
    except StepError as error:
        raise TaskError(
            f"{teacher.what} does not run on example_inputs() of {_words(task.example_inputs)}: {error.reason}. "
            "It has to take the model's inputs, in an operator set that the installed onnxruntime knows."
        ) from error
    wanted = task.check_runs(task.model, "the model")
    if [(value.shape, value.dtype) for value in found] != [(value.shape, value.dtype) for value in wanted]:
        raise TaskError(
            f"{teacher.what} gives outputs of {_words(found)} where the model gives {_words(wanted)}. A teacher has to "
            "give what the model gives, in the same order."
        )
    if not all(bool(torch.isfinite(value).all()) for value in found):
        raise TaskError(f"{teacher.what} gives outputs that are not finite on example_inputs() (NaN or infinity).")


def _words(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"shape {tuple(value.shape)} ({str(value.dtype).removeprefix('torch.')})" for value in tensors)

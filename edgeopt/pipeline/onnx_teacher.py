"""A teacher that is given as ``.onnx``: checked before any training, then run for the batches of a training stream.

In: a task that names the file, and batches of inputs. Out: the teacher's outputs. The file runs in ONNX Runtime on this
machine's CPU, in separate processes that exchange chunks of batches with this one through files.
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
from edgeopt.graph.model import walk_graphs
from edgeopt.passes.distill.parts import Inputs, Outputs
from edgeopt.passes.distill.teacher import Teacher
from edgeopt.task import CheckedTask
from edgeopt.task.values import to_numpy

TEACHER_STAGE = "teacher"
_CHUNK_BYTES = 32_000_000
"""Of inputs: enough that the runs take much longer than starting a process and loading the file."""


class OnnxTeacher(Teacher):
    """The teacher file of a task.

    Args:
        task: Names the file.
        folder: Where inputs and outputs are exchanged as files.

    Raises:
        TaskError: the file is missing, is not an ONNX model, has a fixed batch, or has another number of inputs or
            outputs than the model.
    """

    chunk_bytes = _CHUNK_BYTES

    def __init__(self, task: CheckedTask, folder: Path) -> None:
        assert task.teacher is not None
        self.path = task.teacher
        self.title = f"{task.spec}: the teacher {self.path}"
        self.folder = folder
        graph = read_teacher(task).graph
        initializers = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in initializers]
        self.input_names = self._in_order("inputs", [value.name for value in inputs], task.input_names)
        self.output_names = self._in_order("outputs", [value.name for value in graph.output], task.output_names)
        for value in inputs:
            dims = value.type.tensor_type.shape.dim
            if dims and dims[0].HasField("dim_value"):
                raise TaskError(
                    f"{self.title} has a fixed batch of {dims[0].dim_value} (input '{value.name}'). Export it with a "
                    "dynamic first dimension (`dynamic_shapes` of torch.onnx.export)."
                )

    def _in_order(self, which: str, names: list[str], model_names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the file's names in the model's order if both have the same names, otherwise in the file's order."""
        if len(names) != len(model_names):
            raise TaskError(
                f"{self.title} has {len(names)} {which} ({', '.join(names)}), but the model has {len(model_names)} "
                f"({', '.join(model_names)}). The teacher must have the same inputs and outputs as the model."
            )
        return model_names if set(names) == set(model_names) else tuple(names)

    def run(self, batches: Sequence[Inputs]) -> list[Outputs]:
        """Run all ``batches`` in one fresh process.

        Raises:
            StepError: ONNX Runtime cannot load or run the file.
            DeviceError: the process died or hung.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="chunk-", dir=self.folder) as folder:
            inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
            write_batches(inputs, (dict(zip(self.input_names, map(to_numpy, batch), strict=True)) for batch in batches))
            request = WorkerRequest(
                mode="outputs", model=str(self.path), inputs=str(inputs), outputs=str(outputs),
                providers=("CPUExecutionProvider",),
            )  # fmt: skip
            run_request(LocalDevice(), request, TEACHER_STAGE, seconds=MAX_SECONDS)
            return [
                tuple(torch.from_numpy(batch[name]) for name in self.output_names) for batch in read_batches(outputs)
            ]


def read_teacher(task: CheckedTask) -> onnx.ModelProto:
    """Read a task's teacher, without the weights that are kept in other files.

    Raises:
        TaskError: the file is missing, or is not an ONNX model.
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
        raise TaskError(f"{task.spec}: the teacher {path} cannot be read as an ONNX model (it has no graph).")
    return model


def teacher_files(task: CheckedTask) -> list[Path]:
    """Return every file that the teacher's outputs depend on: the ``.onnx``, and the files of external weights.

    Raises:
        TaskError: one is missing, or the ``.onnx`` is not an ONNX model.
    """
    if task.teacher is None:
        return []
    tensors = [tensor for graph in walk_graphs(read_teacher(task).graph) for tensor in graph.initializer]
    names = {ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)}
    weight_files = [task.teacher.parent / name for name in sorted(names)]
    for path in weight_files:
        if not path.is_file():
            raise TaskError(f"{task.spec}: the teacher {task.teacher} keeps weights in {path}, which does not exist.")
    return [task.teacher, *weight_files]


def check_teacher(task: CheckedTask, folder: Path) -> None:
    """Run a task's teacher, if it has one, on the example inputs, and compare its outputs with the model's in shape.

    Args:
        task: Names the file.
        folder: As in ``OnnxTeacher``.

    Raises:
        TaskError: it doesn't run, or its outputs differ from the model's in number, shape or type, or are not finite.
    """
    if task.teacher is None:
        return
    teacher = OnnxTeacher(task, folder)
    try:
        (outputs,) = teacher.run([task.example_inputs])
    except StepError as error:
        raise TaskError(
            f"{teacher.title} does not run on example_inputs() of {_describe(task.example_inputs)}: {error.reason}. "
            "It must take the model's inputs and use an operator set that the installed onnxruntime supports."
        ) from error
    expected, _ = task.interface.example_outputs
    if [(value.shape, value.dtype) for value in outputs] != [(value.shape, value.dtype) for value in expected]:
        raise TaskError(
            f"{teacher.title} returns outputs of {_describe(outputs)}, but the model returns {_describe(expected)}. "
            "The teacher must have the same outputs as the model, in the same order."
        )
    if not all(bool(torch.isfinite(value).all()) for value in outputs):
        raise TaskError(f"{teacher.title} returns outputs that are not finite on example_inputs() (NaN or infinity).")


def _describe(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"shape {tuple(value.shape)} ({str(value.dtype).removeprefix('torch.')})" for value in tensors)

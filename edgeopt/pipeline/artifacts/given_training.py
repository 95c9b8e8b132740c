"""Whether a given ``.onnx`` can be pruned and trained: it becomes a module, and that computes what the file computes.

In: a build and its ``OnnxTask``. Out: the number of the module's parameters, or why it is only measured and quantized.
"""

from __future__ import annotations

from pathlib import Path

from edgeopt.bench.outputs import read_batches, run_arrays, write_batches
from edgeopt.errors import StepError, TaskError
from edgeopt.export.parity import compare_arrays
from edgeopt.graph.facts import has_half_weights
from edgeopt.model_files.layout import remove_model
from edgeopt.pipeline.artifacts.device_parity import host_target
from edgeopt.pipeline.artifacts.networks import PARITY_TOLERANCE
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.task_data import TaskData
from edgeopt.pipeline.torch_process import protocol
from edgeopt.records.base import Record
from edgeopt.store.workspace import Workspace
from edgeopt.task import CheckedTask
from edgeopt.tasks.given.onnx_file import OnnxTask
from edgeopt.tasks.given.onnx_trainable import TRAINED_FILE, TRAINING_SUFFIX

_STAGE = "convert"


class Trainable(Record, frozen=True, kw_only=True):
    """What came of the conversion."""

    parameters: int = 0
    """Of the module; 0 if it cannot be used."""
    reason: str = ""
    """Why it cannot be used."""


def torch_task(data: TaskData, workspace: Workspace, named: str) -> str:
    """Return the task that torch processes load: the user's, or a folder for a given file.

    Args:
        data: Of the task.
        workspace: Gets the folder.
        named: The task as the user named it.
    """
    task = data.task
    if isinstance(task, CheckedTask) or task.training is None:
        return named
    folder = _training_folder(data, workspace)
    task.write_training(folder)
    return str(folder)


def _training_folder(data: TaskData, workspace: Workspace) -> Path:
    return workspace.folder("stages") / f"given-{data.fingerprint}{TRAINING_SUFFIX}"


def check_trainable(build: Build, task: OnnxTask, file: Path) -> Trainable:
    """Return whether a file's module computes what the file computes; kept in the ledger if it does.

    Args:
        build: The build.
        task: Of the file.
        file: Its copy in the workspace.
    """
    if task.training is None:
        return Trainable(reason=task.untrained_reason)
    key = build.keys.of("given-training", file=task.sha256)
    return build.ledger.remember(
        key, Trainable, lambda: _check(build, task, file), is_usable=lambda found: found.parameters > 0
    )


def _check(build: Build, task: OnnxTask, file: Path) -> Trainable:
    """Convert, trace, export again, and compare outputs at several batch sizes: of a file in 16 bits, those in 32."""
    stages = build.workspace.folder("stages")
    examples, inputs, expected, out = (stages / f"converted-{build.fingerprint}-{name}" for name in
                                       ("examples.npz", "inputs.npz", "expected.npz", "file.onnx"))  # fmt: skip
    write_batches(examples, task.row_check_batches())
    job = protocol.ExportJob(
        network=protocol.NetworkRef(source=protocol.GIVEN, file=None), exporter="dynamo", examples=str(examples),
        inputs=str(inputs), expected=str(expected), out=str(out),
        max_opset=build.profile.max_opset, max_ir=build.profile.max_ir,
    )  # fmt: skip
    if has_half_weights(task.given.model):
        file = _training_folder(build.data, build.workspace) / TRAINED_FILE
    try:
        done = build.torch_pool.do(job, protocol.ExportDone)
        batches = read_batches(examples)
        own = run_step(_STAGE, run_arrays, file, batches, host_target(build), _STAGE)
        found = read_batches(expected)[: len(batches)]
        names = task.output_names
        compare_arrays(
            [batch[name] for batch in own for name in names], [batch[name] for batch in found for name in names],
            stage=_STAGE, tolerance=PARITY_TOLERANCE, names=names, rounding=done.rounding,
        )  # fmt: skip
    except StepError as error:
        return Trainable(reason=error.reason)
    except TaskError as error:
        return Trainable(reason=str(error))
    finally:
        for path in (examples, inputs, expected):
            path.unlink(missing_ok=True)
        remove_model(out)
    return Trainable(parameters=done.parameters)

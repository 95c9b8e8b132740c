"""Files that other ways make of a task's teacher, for ``workloads.py``: each returns ``.onnx`` files, or says why not.

Trainings learn the teacher's outputs with edgeopt's own loss and schedule, and a peer's trainings see together as many
samples as the whole search of edgeopt did, so that ways are compared and not budgets.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import StepError
from edgeopt.export.to_onnx import export
from edgeopt.passes.distill.compute import CPU
from edgeopt.passes.distill.epoch_choice import EpochChoice, score_epoch
from edgeopt.passes.distill.losses import distill_loss
from edgeopt.passes.distill.optimizer import learning_rate, make_optimizer
from edgeopt.passes.distill.teacher import stream_seed
from edgeopt.passes.safe_gradients import find_layout
from edgeopt.pipeline.search.candidate import WARMUP_RATIO
from edgeopt.records.recipe import MAX_EPOCHS_RATIO, Distill
from edgeopt.task import CheckedTask
from edgeopt.task.dynamic_axes import graph_axes
from edgeopt.task.values import flat_outputs
from edgeopt.tasks.networks.attention import Attention
from edgeopt.tasks.networks.narrow import narrow

PRUNING_RATIOS = (0.3, 0.45, 0.6, 0.7, 0.8)
"""Of the channels that torch-pruning removes, one training for each."""
WIDTH_RATIOS = (0.35, 0.5, 0.7)
"""Of the channels of narrower networks of the teacher's family."""
CALIBRATION_SAMPLES = 256
GRADIENT_NORM_LIMIT = 5.0
LIMITS: dict[str, Any] = {"max_opset": 20, "max_ir": 9}

QUANTIZE = """
import sys, numpy as np
from edgeopt.bench.outputs import read_batches
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from pathlib import Path
how, model, out, data = sys.argv[1:]
class Reader(CalibrationDataReader):
    def __init__(self): self.batches = iter(read_batches(Path(data)))
    def get_next(self): return next(self.batches, None)
quant_pre_process(model, out + ".prepared", skip_symbolic_shape=True)
if how == "static":
    quantize_static(out + ".prepared", out, Reader())
elif how == "static per channel":
    quantize_static(out + ".prepared", out, Reader(), per_channel=True, reduce_range=True,
                    activation_type=QuantType.QUInt8)
else:
    quantize_dynamic(out + ".prepared", out)
"""

QUANTIZE_WITH_ONNXSIM = """
import sys, onnx, onnxsim
from onnx import version_converter
from pathlib import Path
from edgeopt.bench.outputs import read_batches
how, model, out, data = sys.argv[1:]
batches = read_batches(Path(data))
# as they are exported, files stay float without a word
model = version_converter.convert_version(onnxsim.simplify(onnx.load(model))[0], 21)
if how == "static":
    made = onnxsim.quantize_static(model, batches)
elif how == "dynamic":
    made = onnxsim.quantize_dynamic(model)
else:
    made = onnxsim.auto_quantize_int4(model, calibration_data=batches).quantized_model
used = {name for node in made.graph.node for name in node.input} | {value.name for value in made.graph.output}
kept = [tensor for tensor in made.graph.initializer if tensor.name in used]  # it leaves the float weights there
del made.graph.initializer[:]
made.graph.initializer.extend(kept)
onnx.save(made, out)
"""


PEERS = ("onnxruntime", "onnxsim", "torch-pruning", "narrower")


class PeerFile(NamedTuple):
    """What a peer made, or the reason why it made nothing."""

    name: str
    path: Path | None
    reason: str = ""
    samples_seen: int = 0
    """In its training."""


class Teacher(NamedTuple):
    """What peers start from."""

    task: CheckedTask
    file: Path
    """Its exported file, which edgeopt's baseline is too."""
    calibration: Path
    """A file of batches."""
    folder: Path


def open_teacher(task: CheckedTask, file: Path, folder: Path) -> Teacher:
    """Write the calibration samples, and return what peers start from."""
    calibration = folder / "calibration.npz"
    left, batches = CALIBRATION_SAMPLES, []
    for inputs, _ in task.calibration_batches():
        batches.append({name: value[:left].numpy() for name, value in zip(task.input_names, inputs, strict=True)})
        left -= len(inputs[0])
        if left <= 0:
            break
    write_batches(calibration, batches)
    return Teacher(task, file, calibration, folder)


# -- without training ------------------------------------------------------------------------------------------------


def peer_file_name(name: str) -> str:
    """Return the stem of the file that a peer's entry is kept in."""
    return name.replace(", float32", "-float").replace(" ", "-")


def quantize_file(teacher: Teacher, model: Path, how: str, name: str, script: str = QUANTIZE) -> PeerFile:
    """Quantize a file in another process, with ``onnxruntime.quantization`` or by another script."""
    out = teacher.folder / f"{peer_file_name(name)}.onnx"
    command = [sys.executable, "-W", "ignore", "-c", script, how, str(model), str(out), str(teacher.calibration)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return PeerFile(name, None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300])
    return PeerFile(name, out)


def quantize_teacher(teacher: Teacher) -> Iterator[PeerFile]:
    """Yield onnxruntime's own int8 files of the teacher."""
    for how in ("static", "static per channel", "dynamic"):
        yield quantize_file(teacher, teacher.file, how, f"onnxruntime {how}")


def quantize_with_onnxsim(teacher: Teacher) -> Iterator[PeerFile]:
    """Yield onnxsim's int8 and int4 files of the teacher, which need no labels."""
    for how in ("static", "dynamic", "int4"):
        yield quantize_file(teacher, teacher.file, how, f"onnxsim {how}", QUANTIZE_WITH_ONNXSIM)


# -- with training ---------------------------------------------------------------------------------------------------


def distillation_of(task: CheckedTask, samples: int) -> tuple[Distill, int]:
    """Return a training that sees about that many samples, and how many it sees in an epoch."""
    training = task.training
    assert training is not None
    each = sum(len(inputs[0]) for inputs, _ in task.train_epoch(0))
    step = Distill(
        epochs=max(1, round(samples / each)), optimizer=training.optimizer, learning_rate=training.learning_rate,
        weight_decay=training.weight_decay, warmup_ratio=WARMUP_RATIO, temperature=training.temperature,
        kl_weight=training.kl_weight, mse_weight=training.mse_weight, hard_weight=training.hard_weight,
    )  # fmt: skip
    return step, each


def distill(students: Sequence[nn.Module], task: CheckedTask, samples: int) -> int:
    """Train networks on the teacher's outputs and keep an epoch of each as edgeopt does, in place.

    They train on the same batches, so that the teacher runs once for all.

    Args:
        students: The networks.
        task: Has the teacher.
        samples: That each sees, about.

    Returns:
        How many samples each saw.
    """
    step, each = distillation_of(task, samples)
    teacher = task.model.eval()
    torch.manual_seed(0)
    optimizers = [make_optimizer(step, list(student.parameters())) for student in students]
    layouts = [find_layout(student) for student in students]
    kept = [student.state_dict() for student in students]
    choices = [EpochChoice(task) for _ in students]
    count = sum(1 for _ in task.train_epoch(0))
    for epoch in range(step.epochs):
        for index, (inputs, targets) in enumerate(task.train_epoch(stream_seed(0, epoch))):
            rate = learning_rate(step, (epoch + index / count) / step.epochs)
            with torch.no_grad():
                expected = tuple(flat_outputs(teacher(*inputs)))
            for student, optimizer, layout in zip(students, optimizers, layouts, strict=True):
                student.train()
                for group in optimizer.param_groups:
                    group["lr"] = rate
                outputs = student(*(_in_layout(value, layout) for value in inputs))
                loss = distill_loss(task, step, outputs, expected, targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(student.parameters(), GRADIENT_NORM_LIMIT)
                optimizer.step()
        scores = []
        for number, student in enumerate(students):
            score = score_epoch(student.eval(), task, CPU)
            scores.append(score.value)
            if choices[number].takes(score):
                kept[number] = copy.deepcopy(student.state_dict())
        click.echo(f"  epoch {epoch + 1} of {step.epochs}: {', '.join(f'{score:.4f}' for score in scores)}", err=True)
    for student, state in zip(students, kept, strict=True):
        student.load_state_dict(state)
    return step.epochs * each


def export_student(teacher: Teacher, student: nn.Module, name: str) -> Path:
    """Write a trained network as ONNX, by the second exporter if the first fails, as edgeopt does.

    Raises:
        StepError: both fail.
    """
    path, task = teacher.folder / f"{peer_file_name(f'{name}, float32')}.onnx", teacher.task
    write = partial(
        export, student.eval(), task.example_inputs, path, input_names=task.input_names, output_names=task.output_names,
        axes=graph_axes(task.interface.graph_dims), output_batch=task.axes.outputs, **LIMITS,
    )  # fmt: skip
    try:
        write(exporter="dynamo")
    except StepError:
        write(exporter="torchscript")
    return path


def train_and_quantize(
    teacher: Teacher, makers: Mapping[str, Callable[[], nn.Module]], samples: int
) -> Iterator[PeerFile]:
    """Make networks, distill them side by side and quantize them; yield their files, or why there are none.

    Args:
        teacher: The teacher.
        makers: By name: makes a network.
        samples: That each sees in its training.
    """
    students: dict[str, nn.Module] = {}
    torch.manual_seed(0)
    for name, make in makers.items():
        try:
            student = make()
            with torch.no_grad():
                student.eval()(*teacher.task.example_inputs)
            students[name] = student.to(memory_format=find_layout(student))  # type: ignore[call-overload]
        except Exception as error:  # noqa: BLE001 - any error of the other tool is the reason why it failed
            yield PeerFile(name, None, _last_line(error))
    click.echo(", ".join(students), err=True)
    if not students:
        return
    seen = distill(list(students.values()), teacher.task, samples)
    for name, student in students.items():
        try:
            path = export_student(teacher, student, name)
        except StepError as error:
            yield PeerFile(name, None, _last_line(error))
            continue
        yield PeerFile(f"{name}, float32", path, samples_seen=seen)
        for how in ("static per channel", "dynamic"):
            yield quantize_file(teacher, path, how, f"{name}, int8 {how}")._replace(samples_seen=seen)


def _in_layout(value: Tensor, layout: torch.memory_format) -> Tensor:
    return value.contiguous(memory_format=layout) if value.dim() == 4 else value


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:300]


def prune_with_torch_pruning(task: CheckedTask, ratio: float, outputs: frozenset[str]) -> nn.Module:
    """Return a pruned copy of the teacher, cut as torch-pruning's documentation says.

    Widths are the nearest multiples of 8: its own ``round_to`` rounds down, and leaves layers of up to 32 channels
    whole if that gives 0; with ``num_heads`` it mixes those of a head with those of a layer.
    """
    import torch_pruning

    model = copy.deepcopy(task.model).eval()
    heads = {
        layer: part.heads
        for part in model.modules()
        if isinstance(part, Attention)
        for layer in (part.query, part.key, part.value)
    }
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]
    widths = {layer: layer.weight.shape[0] for layer in layers}
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, task.example_inputs, importance=torch_pruning.importance.MagnitudeImportance(p=2),
        global_pruning=False, pruning_ratio=ratio, num_heads=heads, in_channel_groups={}, out_channel_groups={},
        pruning_ratio_dict={layer: max(0.0, 1 - (narrow((width,), 1 - ratio)[0] + 0.01) / width)
                            for layer, width in widths.items()},
        ignored_layers=[model.get_submodule(name) for name in outputs],
    )  # fmt: skip
    pruner.step()
    return model


def find_output_layers(task: CheckedTask) -> frozenset[str]:
    """Return the names of the last layers with weights: their channels are the outputs'."""
    layers = [name for name, module in task.model.named_modules() if getattr(module, "weight", None) is not None
              and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]  # fmt: skip
    sizes = {tuple(output.shape)[1] for output in _outputs_of(task) if output.ndim > 1}
    modules = dict(task.model.named_modules())
    found = [name for name in layers if modules[name].weight.shape[0] in sizes]
    return frozenset(found[-len(sizes) :])


def _outputs_of(task: CheckedTask) -> list[Tensor]:
    with torch.no_grad():
        return list(flat_outputs(task.model.eval()(*task.example_inputs)))


def prune_in_five_sizes(teacher: Teacher, samples: int) -> Iterator[PeerFile]:
    """Yield torch-pruning's files of five sizes, each distilled on a fifth of the samples."""
    outputs = find_output_layers(teacher.task)
    makers = {
        f"torch-pruning {ratio:.0%}": partial(prune_with_torch_pruning, teacher.task, ratio, outputs)
        for ratio in PRUNING_RATIOS
    }
    yield from train_and_quantize(teacher, makers, samples // len(PRUNING_RATIOS))


def train_narrower(teacher: Teacher, make: Callable[[float], nn.Module], samples: int) -> Iterator[PeerFile]:
    """Yield files of narrower networks of the same family, distilled from initial weights."""
    makers = {f"narrower {ratio:.0%}": partial(make, ratio) for ratio in WIDTH_RATIOS}
    yield from train_and_quantize(teacher, makers, samples // len(WIDTH_RATIOS))


def count_samples_seen(choice: dict[str, Any], each: int, batches: int) -> int:
    """Return how many samples the trainings of a build saw, each network counted once.

    A training that failed counts in full, which gives the peers more.
    """
    seen: dict[str, int] = {}
    for trial in choice["trials"]:
        recipe = trial["recipe"]
        epochs = 0
        for step in recipe["torch_steps"]:
            if step["step"] == "distill":
                needed = -(-step.get("min_steps", 0) // batches)
                epochs += max(step["epochs"], min(needed, MAX_EPOCHS_RATIO * step["epochs"]))
        seen[repr((recipe["torch_steps"], recipe["parent"]))] = each * epochs
    return sum(seen.values())


def all_peers(
    teacher: Teacher, narrower: Callable[[float], nn.Module] | None, samples: int
) -> Iterator[tuple[str, Iterator[PeerFile]]]:
    """Yield each peer with its files, which are made as they are asked for."""
    yield "onnxruntime", quantize_teacher(teacher)
    yield "onnxsim", quantize_with_onnxsim(teacher)
    yield "torch-pruning", prune_in_five_sizes(teacher, samples)
    if narrower is not None:
        yield "narrower", train_narrower(teacher, narrower, samples)

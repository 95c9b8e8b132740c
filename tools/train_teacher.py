"""Train the network that a ready task begins with, once, and keep it with the data.

    EDGEOPT_DATA=DIR python tools/train_teacher.py camvid_segmentation
    EDGEOPT_DATA=DIR python tools/train_teacher.py camvid_segmentation --width-ratio 0.5 --out half.safetensors

The epoch with the best score on the selection set is kept. With ``--width-ratio`` it trains a narrower network of the
same family alike, as a reference: a teacher is worth compressing only if that one is worse.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeopt.errors import EdgeoptError
from edgeopt.passes.safe_gradients import find_layout
from edgeopt.task.nesting import map_tensors
from edgeopt.task.values import to_numpy
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.detection import Detection
from edgeopt.tasks.ready.camvid_detection import CamVidDetection
from edgeopt.tasks.ready.camvid_segmentation import CamVidSegmentation
from edgeopt.tasks.ready.docstring_topics import DocstringTopics
from edgeopt.tasks.ready.fashion import FashionVisionTransformer
from edgeopt.tasks.ready.spoken_digits import (
    SpokenDigits,
    SpokenDigitsByConvolution,
    SpokenDigitsBySpeaker,
    SpokenDigitsRecurrent,
)
from edgeopt.tasks.ready.spoken_digits_streaming import SpokenDigitsInChunks
from edgeopt.tasks.ready.teachers import teacher_path

TrainedTask = Classification | Detection


class TeacherRecipe(NamedTuple):
    """How the network of a ready task is trained."""

    make_task: Callable[[Callable[[], nn.Module] | None], TrainedTask]
    make_network: Callable[[float], nn.Module]
    epochs: int = 30
    rate: float = 0.1
    """Highest learning rate of the one-cycle schedule."""
    optimizer: Literal["sgd", "adamw"] = "sgd"

    def make_optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        """Return the optimizer of a network's parameters."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
        return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)


TASKS: dict[str, TeacherRecipe] = {
    "camvid_detection": TeacherRecipe(CamVidDetection, CamVidDetection.make_network, 40, 6e-3, "adamw"),
    "camvid_segmentation": TeacherRecipe(CamVidSegmentation, CamVidSegmentation.make_network),
    "docstring_topics": TeacherRecipe(DocstringTopics, DocstringTopics.make_network, 12, 1e-3, "adamw"),
    "fashion_vit": TeacherRecipe(FashionVisionTransformer, FashionVisionTransformer.make_network, 30, 1e-3, "adamw"),
    "spoken_digits": TeacherRecipe(SpokenDigits, SpokenDigits.make_network),
    "spoken_digits_by_speaker": TeacherRecipe(SpokenDigitsBySpeaker, SpokenDigitsBySpeaker.make_network),
    "spoken_digits_convolution": TeacherRecipe(SpokenDigitsByConvolution, SpokenDigitsByConvolution.make_network),
    "spoken_digits_recurrent": TeacherRecipe(
        SpokenDigitsRecurrent, SpokenDigitsRecurrent.make_network, rate=3e-3, optimizer="adamw"
    ),
    "spoken_digits_streaming": TeacherRecipe(
        SpokenDigitsInChunks, SpokenDigitsInChunks.make_network, rate=3e-3, optimizer="adamw"
    ),
}


def run_network(model: nn.Module, inputs: Any, device: str, layout: torch.memory_format) -> Any:
    """Return a network's outputs; inputs are a tensor, or a dict by the parameters of ``forward``."""

    def put(value: Tensor) -> Tensor:
        return value.to(device, memory_format=layout if value.ndim == 4 else torch.preserve_format)

    placed = map_tensors(put, inputs)
    return model(**placed) if isinstance(placed, Mapping) else model(placed)


def score(model: nn.Module, task: TrainedTask, batches: Iterable[Any] | None, device: str) -> float:
    """Return the task's score of a network."""
    model.eval()
    layout = find_layout(model)
    with torch.no_grad():
        pairs = [
            (to_numpy(run_network(model, inputs, device, layout)), to_numpy(targets))
            for inputs, targets in batches or ()
        ]
    if isinstance(task, Classification) and task.score_kind is None:
        task.score_kind = task.kind_of(pairs)  # once: the loss asks for it in every step
    return task.score(pairs)


def train(task: TrainedTask, epochs: int, rate: float, seed: int, device: str) -> float:
    """Train a task's network in place; return its best score on the selection set."""
    model = task.build_model()
    steps = sum(1 for _ in task.train_batches(0))
    optimizer = TASKS[task.name].make_optimizer(model, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.2)
    layout = find_layout(model)
    best, kept = score(model, task, task.eval_batches(), device), copy.deepcopy(model.state_dict())
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        for inputs, targets in task.train_batches(seed * 1000 + epoch):
            outputs = run_network(model, inputs, device, layout)
            loss = task.loss(outputs, map_tensors(lambda value: value.to(device), targets))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        found = score(model, task, task.eval_batches(), device)
        if found >= best:
            best, kept = found, copy.deepcopy(model.state_dict())
        print(f"epoch {epoch + 1}: {time.perf_counter() - start:.0f} s, selection {found:.4f}", flush=True)
    model.load_state_dict(kept)
    return best


@click.command()
@click.argument("name", type=click.Choice(sorted(TASKS)))
@click.option("--epochs", type=int, help="Default: those of the task, about 20 minutes on two cores.")
@click.option("--rate", type=float, help="Highest learning rate of the one-cycle schedule. Default: that of the task.")
@click.option("--seed", default=0, show_default=True)
@click.option("--width-ratio", default=1.0, show_default=True, help="Of the channels, for a reference.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: teachers/NAME.safetensors in EDGEOPT_DATA.")
def main(name: str, epochs: int | None, rate: float | None, seed: int, width_ratio: float, out: Path | None) -> None:
    """Train, save, and print the score on the test set."""
    recipe = TASKS[name]
    try:
        run(name, epochs or recipe.epochs, rate or recipe.rate, seed, width_ratio, out)
    except EdgeoptError as error:
        raise click.ClickException(str(error)) from error


def run(name: str, epochs: int, rate: float, seed: int, width_ratio: float, out: Path | None) -> None:
    """Train the network of a task, and save it."""
    path = out or teacher_path(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    recipe = TASKS[name]
    model = recipe.make_network(width_ratio).to(device)
    model = model.to(memory_format=find_layout(model))  # type: ignore[call-overload]
    task = recipe.make_task(lambda: model)
    best = train(task, epochs, rate, seed, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "epochs": epochs, "rate": rate, "seed": seed, "width_ratio": width_ratio, "selection": best,
        "torch": torch.__version__,
    }  # fmt: skip
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, path, metadata={"training": json.dumps(settings)})
    tested = score(model, task, task.test_batches(), device)
    print(f"{path}: selection {best:.4f}, test {tested:.4f}")


if __name__ == "__main__":
    main()

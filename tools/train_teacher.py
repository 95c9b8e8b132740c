"""Train the network that a ready task begins with, once, and keep it with the data.

    EDGEOPT_DATA=DIR python tools/train_teacher.py camvid_segmentation
    EDGEOPT_DATA=DIR python tools/train_teacher.py camvid_segmentation --width-ratio 0.5 --out half.safetensors

The optimizer and its weight decay are those of the task's own training. The epoch with the best score on the selection
set is kept. With ``--width-ratio`` it trains a narrower network of the same family alike, as a reference: a teacher is
worth compressing only if that one is worse.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from torch import nn

from edgeopt.errors import EdgeoptError
from edgeopt.task.nesting import map_tensors
from edgeopt.task.values import to_numpy
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.detection import Detection
from edgeopt.tasks.ready.camvid_detection import CamVidDetection
from edgeopt.tasks.ready.camvid_segmentation import CamVidSegmentation
from edgeopt.tasks.ready.spoken_digits import SpokenDigits, SpokenDigitsBySpeaker
from edgeopt.tasks.ready.teachers import teacher_path

TASKS: dict[str, type[CamVidDetection | CamVidSegmentation | SpokenDigits]] = {
    "camvid_detection": CamVidDetection,
    "camvid_segmentation": CamVidSegmentation,
    "spoken_digits": SpokenDigits,
    "spoken_digits_by_speaker": SpokenDigitsBySpeaker,
}
RATES = {"adamw": 0.006, "sgd": 0.1}
"""Highest learning rate by optimizer."""


def score(model: nn.Module, task: Classification | Detection, batches: Iterable[Any] | None, device: str) -> float:
    """Return the task's score of a network."""
    model.eval()
    with torch.no_grad():
        return task.score(
            [(to_numpy(model(inputs.to(device))), to_numpy(targets)) for inputs, targets in batches or ()]
        )


def find_layout(model: nn.Module) -> torch.memory_format:
    """Return the memory format to train a network in: channels last, which is fastest, unless that crashes.

    The gradient of a strided 1x1 convolution with fewer than 16 channels does, in PyTorch 2.13 on CPUs.
    """
    shortcuts = [one for one in model.modules() if isinstance(one, nn.Conv2d) and set(one.kernel_size) == {1}]
    crashes = any(set(one.stride) != {1} and one.in_channels < 16 for one in shortcuts)
    return torch.contiguous_format if crashes else torch.channels_last


def make_optimizer(task: Classification | Detection, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Return the optimizer of a task's training."""
    decay = task.training.weight_decay
    if task.training.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=decay, nesterov=True)


def train(task: Classification | Detection, epochs: int, rate: float, seed: int, device: str) -> float:
    """Train a task's network in place; return its best score on the selection set."""
    model = task.build_model()
    steps = sum(1 for _ in task.train_batches(0))
    optimizer = make_optimizer(task, model, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.2)
    layout = find_layout(model)
    best, kept = score(model, task, task.eval_batches(), device), model.state_dict()
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        for inputs, targets in task.train_batches(seed * 1000 + epoch):
            batch = inputs.to(device, memory_format=layout if inputs.ndim == 4 else torch.preserve_format)
            loss = task.loss(model(batch), map_tensors(lambda value: value.to(device), targets))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        found = score(model, task, task.eval_batches(), device)
        if found >= best:
            best, kept = found, {name: value.clone() for name, value in model.state_dict().items()}
        print(f"epoch {epoch + 1}: {time.perf_counter() - start:.0f} s, selection {found:.4f}", flush=True)
    model.load_state_dict(kept)
    return best


@click.command()
@click.argument("name", type=click.Choice(sorted(TASKS)))
@click.option("--epochs", default=30, show_default=True)
@click.option("--rate", type=float, help="Highest rate of the one-cycle schedule (default: 0.006 adamw, 0.1 sgd).")
@click.option("--seed", default=0, show_default=True)
@click.option("--width-ratio", default=1.0, show_default=True, help="Of the channels, for a reference.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: teachers/NAME.safetensors in EDGEOPT_DATA.")
def main(name: str, epochs: int, rate: float | None, seed: int, width_ratio: float, out: Path | None) -> None:
    """Train, save, and print the score on the test set."""
    try:
        run(name, epochs, rate, seed, width_ratio, out)
    except EdgeoptError as error:
        raise click.ClickException(str(error)) from error


def run(name: str, epochs: int, rate: float | None, seed: int, width_ratio: float, out: Path | None) -> None:
    """Train the network of a task, and save it."""
    path = out or teacher_path(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    model = TASKS[name].make_network(width_ratio).to(device)
    model = model.to(memory_format=find_layout(model))  # type: ignore[call-overload]
    task = TASKS[name](lambda: model)
    rate = RATES[task.training.optimizer] if rate is None else rate
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

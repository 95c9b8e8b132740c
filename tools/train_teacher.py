"""Train the network that a ready task begins with, once, and keep it with the data.

    EDGEOPT_DATA=DIR python tools/train_teacher.py camvid_segmentation
    EDGEOPT_DATA=DIR python tools/train_teacher.py camvid_segmentation --width-ratio 0.5 --out half.safetensors

The epoch with the best score on the selection set is kept. With ``--width-ratio`` it trains a narrower network of the
same family alike, as a reference: a teacher is worth compressing only if that one is worse.
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
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.ready.camvid_segmentation import CamVidSegmentation
from edgeopt.tasks.ready.spoken_digits import SpokenDigits, SpokenDigitsBySpeaker
from edgeopt.tasks.ready.teachers import teacher_path

TASKS: dict[str, type[CamVidSegmentation | SpokenDigits]] = {
    "camvid_segmentation": CamVidSegmentation,
    "spoken_digits": SpokenDigits,
    "spoken_digits_by_speaker": SpokenDigitsBySpeaker,
}


def score(model: nn.Module, task: Classification, batches: Iterable[Any] | None, device: str) -> float:
    """Return the task's score of a network."""
    model.eval()
    with torch.no_grad():
        return task.score(
            [(model(inputs.to(device)).cpu().numpy(), labels.numpy()) for inputs, labels in batches or ()]
        )


def train(task: Classification, epochs: int, rate: float, seed: int, device: str) -> float:
    """Train a task's network in place; return its best score on the selection set."""
    model = task.build_model()
    steps = sum(1 for _ in task.train_batches(0))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.2)
    best, kept = score(model, task, task.eval_batches(), device), model.state_dict()
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        for inputs, labels in task.train_batches(seed * 1000 + epoch):
            batch = inputs.to(device, memory_format=torch.channels_last if inputs.ndim == 4 else torch.preserve_format)
            loss = task.loss(model(batch), labels.to(device))
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
@click.option("--rate", default=0.1, show_default=True, help="Highest learning rate of the one-cycle schedule.")
@click.option("--seed", default=0, show_default=True)
@click.option("--width-ratio", default=1.0, show_default=True, help="Of the channels, for a reference.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: teachers/NAME.safetensors in EDGEOPT_DATA.")
def main(name: str, epochs: int, rate: float, seed: int, width_ratio: float, out: Path | None) -> None:
    """Train, save, and print the score on the test set."""
    try:
        run(name, epochs, rate, seed, width_ratio, out)
    except EdgeoptError as error:
        raise click.ClickException(str(error)) from error


def run(name: str, epochs: int, rate: float, seed: int, width_ratio: float, out: Path | None) -> None:
    """Train the network of a task, and save it."""
    path = out or teacher_path(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    model = TASKS[name].make_network(width_ratio).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = TASKS[name](lambda: model)
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

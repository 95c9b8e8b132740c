"""Train the network that ships with the default task, on Fashion-MNIST's training set without the selection images.

    EDGEOPT_DATA=DIR python tools/train_fashion_teacher.py --out edgeopt/tasks/ready/data/fashion-resnet.safetensors

It uses one thread and a fixed seed: the same machine and versions give the same file. Takes about an hour on one core.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeopt.tasks.networks.resnet import SmallResNet
from edgeopt.tasks.ready import augment
from edgeopt.tasks.ready.fashion import load_tensors


def measure_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of ``images`` that ``model`` classifies correctly."""
    model.eval()
    with torch.no_grad():
        correct = sum(
            int((model(batch).argmax(1) == target).sum())
            for batch, target in zip(images.split(500), labels.split(500), strict=True)
        )
    return correct / len(labels)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--epochs", default=16, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--rate", default=0.1, show_default=True, help="Highest learning rate of the one-cycle schedule.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(out: Path, epochs: int, batch_size: int, rate: float, seed: int, threads: int) -> None:
    """Train, print each epoch's accuracy on the selection images, save, and print the official test accuracy."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = load_tensors("train")
    selection = load_tensors("selection")
    model: nn.Module = SmallResNet(stem=32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(labels) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        order = torch.randperm(len(labels), generator=generator)
        for indices in order[: steps * batch_size].split(batch_size):
            batch = augment.flip_horizontally(images[indices], generator)
            batch = augment.erase(augment.shift(batch, generator), generator)
            batch = batch.contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(batch), labels[indices])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: {seconds:.0f} s, selection {measure_accuracy(model, *selection):.4f}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    settings = {"epochs": epochs, "batch_size": batch_size, "rate": rate, "seed": seed, "torch": torch.__version__}
    save_file(state, out, metadata={"training": json.dumps(settings)})
    print(f"official test set: {measure_accuracy(model, *load_tensors('test')):.4f}")


if __name__ == "__main__":
    main()

"""Train a network of ``zoo/fashion.py`` on Fashion-MNIST, for benchmarks that need a trained one.

EDGEOPT_DATA=DIR python benchmarks/train_fashion.py NAME --epochs 6 --out FILE.safetensors
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.zoo.fashion import TRAINABLE
from edgeopt.tasks.ready.fashion import load_tensors

BATCH_SIZE = 128
WARMUP_RATIO = 0.1
LABEL_SMOOTHING = 0.05
MAX_GRADIENT_NORM = 1.0
LEARNING_RATES = {"transformer": 2e-3, "recurrent": 2e-3}
DEFAULT_LEARNING_RATE = 4e-3


def train(name: str, epochs: int, seed: int = 0, count: int | None = None) -> torch.nn.Module:
    """Train on the first ``count`` training images, or all, with AdamW, warm-up and cosine decay.

    Half of the batches are mirrored.
    """
    torch.manual_seed(seed)
    images, labels = (values[:count] for values in load_tensors("train"))
    network = TRAINABLE[name]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rate = LEARNING_RATES.get(name, DEFAULT_LEARNING_RATE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    steps = epochs * math.ceil(len(images) / BATCH_SIZE)
    step = 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            done = step / steps
            factor = min(1.0, done / WARMUP_RATIO + 0.02) * max(0.002, 0.5 * (1 + math.cos(math.pi * done)))
            optimizer.param_groups[0]["lr"] = rate * factor
            batch = images[chosen].flip(3) if torch.rand(()) < 0.5 else images[chosen]
            loss = torch.nn.functional.cross_entropy(network(batch), labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            step += 1
        click.echo(f"{name}: {step} of {steps} steps", err=True)
    return network


@click.command()
@click.argument("name", type=click.Choice(sorted(TRAINABLE)))
@click.option("--epochs", default=6, show_default=True)
@click.option("--images", type=click.IntRange(1), help="Number of images to train on (default: all).")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(name: str, epochs: int, images: int | None, out: Path) -> None:
    """Train and write the weights."""
    torch.set_num_threads(1)
    weights = train(name, epochs, count=images).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, out)


if __name__ == "__main__":
    main()

"""A classifier of coloured pictures in a folder by class: colours, places and sizes tell the six classes apart."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import edgeopt

CLASSES = ("red sky", "red sea", "green sky", "green sea", "blue sky", "blue sea")
"""The colour, and the half of the picture that has it."""
SIZE = (20, 24)
MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.22, 0.24)


def draw(label: int, generator: np.random.Generator, size: tuple[int, int] = (26, 36)) -> Image.Image:
    """Return a picture of a class, larger than the network's input."""
    height, width = size
    pixels = generator.normal(110, 25, (height // 2, width // 2, 3)).repeat(2, 0).repeat(2, 1)
    top = (label % 2) * height // 2
    pixels[top : top + height // 2, :, label // 2] += 70 + 40 * generator.random()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pictures(folder: Path, count: int = 30) -> None:
    """Write ``count`` pictures of each class."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            draw(label, generator).save(folder / name / f"{number}.png")


def make_network() -> nn.Module:
    """Return a small network with initial weights from a fixed seed."""
    torch.manual_seed(0)
    layers = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1, stride=2), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, len(CLASSES)))


def make_task():
    """Return the task of the folder ``PICTURES``, with a network that is trained now."""
    network = make_network()
    task = edgeopt.image_folder(
        network, os.environ["PICTURES"], size=SIZE, resize="crop", mean=MEAN, std=STD, classes=CLASSES, flip=False,
        crop=False, batch_size=16, name="pictures", licence="made up",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for epoch in range(4):
        for images, labels in task.draw_epoch(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    network.eval()
    return task

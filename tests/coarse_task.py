"""The tiny task with each pixel four times as high and wide: half of the resolution is enough to tell its classes."""

import tiny_task
import torch
from torch import nn

import edgeopt


class CoarseNet(nn.Module):
    """Two convolutions and a linear head; any size of image."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers = []
        for before, after in ((1, width), (width, width)):
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width * 4, 4)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(self.body(x), 2).flatten(1))


def batches(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return ``count`` images of 32x32 pixels in batches."""
    return [(x.repeat_interleave(4, 2).repeat_interleave(4, 3), y) for x, y in tiny_task.batches(count, seed)]


def trained() -> nn.Module:
    """Train the network from a fixed seed."""
    torch.manual_seed(0)
    return tiny_task.train(CoarseNet(), batches)


def task():
    """Return the task."""
    return edgeopt.classification(
        trained,
        lambda seed: batches(256, seed),
        batches(512, 1000),
        name="coarse",
        training=edgeopt.Training(epochs=2, learning_rate=0.02, min_steps=0),
    )

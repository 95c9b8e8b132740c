"""A task that trains in a second: four classes of 8x8 images, by the quadrant that is bright."""

from collections.abc import Callable

import torch
from torch import nn

import edgeopt


class TinyNet(nn.Module):
    """Two convolutions, the second with a skip connection, and a linear head."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width * 4, 4)

    def forward(self, x):
        y = self.stem(x)
        y = torch.relu(self.body(y) + y)
        return self.head(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy images with one bright quadrant, and the index of that quadrant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    x = 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
    for quadrant in range(4):
        top, left = 4 * (quadrant // 2), 4 * (quadrant % 2)
        x[labels == quadrant, :, top : top + 4, left : left + 4] += 0.35
    return x, labels


def batches(count: int, seed: int, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return ``count`` images in batches."""
    x, labels = images(count, seed)
    return list(zip(torch.split(x, size), torch.split(labels, size), strict=True))


def trained() -> nn.Module:
    """Train the network from a fixed seed."""
    torch.manual_seed(0)
    return train(TinyNet(), batches)


def train(net: nn.Module, draw: Callable[[int, int], list[tuple[torch.Tensor, torch.Tensor]]]) -> nn.Module:
    """Train a network for four epochs of 256 images, which ``draw`` returns by their count and a seed."""
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for epoch in range(4):
        for x, labels in draw(256, epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
    return net.eval()


def task():
    """Return the task."""
    return edgeopt.classification(
        trained,
        lambda seed: batches(256, seed),
        batches(512, 1000),
        test=batches(256, 2000),
        name="tiny",
        labels=("upper left", "upper right", "lower left", "lower right"),
        students={"narrow": lambda: TinyNet(12)},
        training=edgeopt.Training(epochs=3, learning_rate=0.05, min_steps=0),
    )

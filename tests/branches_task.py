"""A task whose network has parallel branches, and a student that has them too."""

import torch
from tiny_task import batches
from torch import nn

import edgeopt


class Block(nn.Module):
    """A 3x3 and a 1x1 convolution and the input, each with a batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.dense_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.pointwise, self.pointwise_norm = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.identity = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(self.dense_norm(self.dense(x)) + self.pointwise_norm(self.pointwise(x)) + self.identity(x))


def net(width: int) -> nn.Module:
    """Return a network of two blocks."""
    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4))
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), Block(width), Block(width), *head)


def trained() -> nn.Module:
    """Train the network from a fixed seed."""
    torch.manual_seed(0)
    model = net(32)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for epoch in range(2):
        for x, labels in batches(256, epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
    return model.eval()


def task():
    """Return the task."""
    return edgeopt.classification(
        trained,
        lambda seed: batches(256, seed),
        batches(512, 1000),
        name="branches",
        students={"narrow": lambda: net(8)},
        training=edgeopt.Training(epochs=2, learning_rate=0.05, min_steps=0),
    )

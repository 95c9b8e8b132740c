"""A task of wide layers whose inputs vary in few directions, which suits low rank. It trains in a second."""

import torch
from torch import nn

import edgeopt

INPUTS, DIRECTIONS, CLASSES = 768, 8, 4


def batches(count: int, seed: int, size: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return points in a few directions of a wide space; the signs of the first two directions are the class."""
    mixing = torch.randn(DIRECTIONS, INPUTS, generator=torch.Generator().manual_seed(7))
    hidden = torch.randn(count, DIRECTIONS, generator=torch.Generator().manual_seed(seed))
    labels = 2 * (hidden[:, 0] > 0).long() + (hidden[:, 1] > 0).long()
    return list(zip(torch.split(hidden @ mixing, size), torch.split(labels, size), strict=True))


class Residual(nn.Module):
    """Wide linear layers around a skip connection, which ties their widths to the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(INPUTS, INPUTS) for _ in range(3))
        self.head = nn.Linear(INPUTS, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.head(x)


def trained() -> nn.Module:
    """Train the network from a fixed seed."""
    torch.manual_seed(0)
    net = Residual()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for epoch in range(3):
        for x, labels in batches(1024, epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
    return net.eval()


def task():
    """Return the task."""
    return edgeopt.classification(
        trained,
        lambda seed: batches(1024, seed),
        batches(512, 1000),
        name="tiny-mlp",
        training=edgeopt.Training(epochs=2, learning_rate=0.01, min_steps=0),
    )

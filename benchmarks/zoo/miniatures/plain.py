"""Small networks with linear layers, views and shared weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]


def mlp() -> Built:
    """Linear layers and a batch norm."""
    body = nn.Sequential(
        nn.Linear(10, 16),
        nn.ReLU(),
        nn.BatchNorm1d(16),
        nn.Linear(16, 12),
        nn.Tanh(),
        nn.Dropout(0.1),
        nn.Linear(12, 3),
    )
    return body, (torch.randn(1, 10),)


def flatten() -> Built:
    """A view that merges channels with positions before a linear layer."""
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 14), nn.GELU(), nn.Linear(14, 4)
    )
    return body, (torch.randn(1, 1, 8, 8),)


class Tied(nn.Module):
    """Two linear layers with one weight, a scale for each channel, a split, a stack, products with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.shared = nn.Linear(12, 12)
        self.twin = nn.Linear(12, 12)
        self.twin.weight = self.shared.weight
        self.scale = nn.Parameter(torch.rand(12))
        self.register_buffer("offset", torch.rand(1, 12))
        self.matrix = nn.Parameter(torch.randn(12, 10))
        self.again = nn.Linear(12, 10)
        self.last = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map vectors to vectors."""
        y = self.twin(torch.relu(self.shared(self.first(x)))).relu() * self.scale + self.offset
        z = torch.stack([y @ self.matrix, self.again(y)], 1).flatten(1)
        left, middle, right = z.split([4, 10, 6], dim=1)
        joined = torch.cat([left * right[:, :4], middle], 1)
        out: Tensor = self.last(joined)
        return out


def tied() -> Built:
    """Shared weights, parameters in element-wise operators, unequal splits."""
    return Tied(), (torch.randn(16, 6),)


class TwoHeads(nn.Module):
    """Two inputs and a dict of outputs; one output is an inner value, so its channels cannot go."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 9, 3, padding=1), nn.Conv2d(2, 9, 3, padding=1)
        self.middle = nn.Conv2d(9, 6, 1)
        self.wide = nn.Conv2d(6, 15, 1)
        self.head = nn.Linear(15, 2)

    def forward(self, one: Tensor, two: Tensor) -> dict[str, Tensor]:
        """Map two images to a map and logits."""
        features = self.middle(torch.relu(self.left(one) + self.right(two)))
        logits = self.head(torch.relu(self.wide(features)).amax((2, 3)))
        return {"features": features, "logits": logits}


def two_heads() -> Built:
    """Several inputs and outputs."""
    return TwoHeads(), (torch.randn(1, 1, 6, 6), torch.randn(1, 2, 6, 6))

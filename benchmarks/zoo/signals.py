"""Sequences, points and reconstructions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Built


class TemporalBlock(nn.Module):
    """Two dilated causal convolutions (padded, then cut) and a skip."""

    def __init__(self, channels: int, out: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.cut = (kernel - 1) * dilation
        self.conv1 = nn.Conv1d(channels, out, kernel, padding=self.cut, dilation=dilation)
        self.conv2 = nn.Conv1d(out, out, kernel, padding=self.cut, dilation=dilation)
        self.dropout = nn.Dropout(0.2)
        self.skip = nn.Conv1d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Keep the length."""
        y = self.dropout(F.relu(self.conv1(x)[..., : -self.cut]))
        y = self.dropout(F.relu(self.conv2(y)[..., : -self.cut]))
        return F.relu(y + self.skip(x))


class TCN(nn.Module):
    """Blocks of growing dilation; the logits come from the last step."""

    def __init__(self) -> None:
        super().__init__()
        pairs = ((6, 48), (48, 48), (48, 64), (64, 64))
        self.blocks = nn.Sequential(*(TemporalBlock(*pair, 5, 2**level) for level, pair in enumerate(pairs)))
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 6, time) to logits."""
        logits: Tensor = self.head(self.blocks(x)[:, :, -1])
        return logits


def tcn() -> Built:
    """Dilated causal convolutions."""
    return TCN(), (torch.randn(1, 6, 64),)


def point_layers(*widths: int) -> nn.Sequential:
    """Return convolutions of width 1, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels, out in itertools.pairwise(widths):
        layers += [nn.Conv1d(channels, out, 1), nn.BatchNorm1d(out), nn.ReLU()]
    return nn.Sequential(*layers)


class Transform(nn.Module):
    """A matrix for each cloud, near the identity."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.points = point_layers(size, 32, 64, 128)
        self.dense = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, size * size))
        self.register_buffer("identity", torch.eye(size).flatten())
        self.identity: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, size, points) to (batch, size, size)."""
        matrix = self.dense(self.points(x).amax(2)) + self.identity
        return matrix.view(-1, self.size, self.size)


class PointNet(nn.Module):
    """The same layers for every point, a maximum over all points, a transform of inputs and one of features."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.features = Transform(3), Transform(32)
        self.low, self.high = point_layers(3, 32, 32), point_layers(32, 64, 256)
        self.head = nn.Sequential(
            nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)
        )

    def forward(self, points: Tensor) -> Tensor:
        """Map (batch, 3, points) to logits."""
        x = self.low(torch.bmm(points.transpose(1, 2), self.inputs(points)).transpose(1, 2))
        x = torch.bmm(x.transpose(1, 2), self.features(x)).transpose(1, 2)
        logits: Tensor = self.head(torch.max(self.high(x), 2)[0])
        return logits


def pointnet() -> Built:
    """Products of activations, a maximum over points."""
    return PointNet(), (torch.randn(2, 3, 128),)


class Autoencoder(nn.Module):
    """Convolutions down to a code, transposed convolutions back up."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 49, 64),
        )  # fmt: skip
        self.expand = nn.Linear(64, 64 * 49)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 1, 3, 1, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Map images to their reconstructions."""
        code = self.encoder(images)
        out: Tensor = self.decoder(F.relu(self.expand(code)).view(-1, 64, 7, 7))
        return out


def autoencoder() -> Built:
    """A view that merges channels with positions, and one that separates them."""
    return Autoencoder(), (torch.randn(1, 1, 28, 28),)

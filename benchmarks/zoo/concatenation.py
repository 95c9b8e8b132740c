"""Image classifiers with concatenation: dense blocks and parallel branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Built
from benchmarks.zoo.layers import classifier, conv_norm


class DenseLayer(nn.Module):
    """Norm, 1x1, norm, 3x3; the result is appended to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True), nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Add ``growth`` channels."""
        return torch.cat([x, self.layers(x)], 1)


def densenet() -> Built:
    """Dense blocks and transitions."""
    layers: list[nn.Module] = [conv_norm(3, 48, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 48
    for block, count in enumerate((4, 6, 4)):
        for _ in range(count):
            layers.append(DenseLayer(channels, 24))
            channels += 24
        if block < 2:
            transition = nn.Conv2d(channels, channels // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), transition, nn.AvgPool2d(2)]
            channels //= 2
    body = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    return nn.Sequential(body, classifier(channels, 10)), (torch.randn(1, 3, 64, 64),)


class Inception(nn.Module):
    """1x1; 1x1 then 3x3; 1x1 then 3x3 twice; pool then 1x1."""

    def __init__(self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.branch1 = conv_norm(channels, one, 1)
        self.branch2 = nn.Sequential(conv_norm(channels, three[0], 1), conv_norm(*three, 3))
        self.branch3 = nn.Sequential(
            conv_norm(channels, five[0], 1), conv_norm(*five, 3), conv_norm(five[1], five[1], 3)
        )
        self.branch4 = conv_norm(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size."""
        pooled = F.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(pooled)], 1)


class Reduction(nn.Module):
    """A strided convolution, asymmetric kernels and a pooling in parallel."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.branch1 = conv_norm(channels, out, 3, 2)
        self.branch2 = nn.Sequential(
            nn.Conv2d(channels, out, (1, 5), padding=(0, 2)), nn.Conv2d(out, out, (5, 1), padding=(2, 0)),
            nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, out, 3, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Halve the size."""
        return torch.cat([self.branch1(x), self.branch2(x), F.max_pool2d(x, 3, 2, 1)], 1)


def inception() -> Built:
    """Parallel branches with different kernels."""
    body = nn.Sequential(
        conv_norm(3, 32, 3, 2), conv_norm(32, 64, 3), nn.MaxPool2d(3, 2, 1),
        Inception(64, 32, (24, 48), (8, 16), 16), Inception(112, 48, (32, 64), (16, 32), 24), Reduction(168, 48),
        Inception(264, 64, (48, 96), (16, 32), 32), Inception(224, 64, (48, 96), (16, 32), 32),
    )  # fmt: skip
    return nn.Sequential(body, classifier(224, 10)), (torch.randn(1, 3, 64, 64),)

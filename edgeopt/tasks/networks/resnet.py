"""The residual network of the ready image tasks: small images in, class logits out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection (He et al., 2016, figure 2).

    The skip is the identity if the shape stays, otherwise a strided 1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, h, w)`` to ``(batch, out_channels, h / stride, w / stride)``."""
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + self.skip(x))
        return out


class SmallResNet(nn.Module):
    """A residual network for small grey or colour images.

    Args:
        classes: Number of logits.
        in_channels: Image channels.
        stem: Channels of the first convolution, which keeps the resolution.
        widths: Channels of each stage; every stage halves the resolution.
        blocks: Residual blocks in each stage.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 1,
        stem: int = 16,
        widths: Sequence[int] = (32, 64, 128),
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        stages: list[nn.Module] = []
        previous = stem
        for width in widths:
            for index in range(blocks):
                stages.append(ResidualBlock(previous, width, 2 if index == 0 else 1))
                previous = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(previous, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(batch, in_channels, h, w)`` to logits ``(batch, classes)``."""
        logits: Tensor = self.head(self.pool(self.stages(self.stem(x))).flatten(1))
        return logits

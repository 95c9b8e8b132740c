"""The segmentation network of the ready tasks: a small U-Net with a residual encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeopt.tasks.networks.resnet import ResidualBlock


class _Merge(nn.Module):
    """Enlarge a map to the size of a finer one, and mix both."""

    def __init__(self, coarse: int, fine: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(coarse + fine, out_channels, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Map ``(batch, coarse, h, w)`` and ``(batch, fine, H, W)`` to ``(batch, out_channels, H, W)``."""
        enlarged = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.relu(self.bn(self.conv(torch.cat([enlarged, fine], 1))))
        return out


class SmallUNet(nn.Module):
    """A U-Net (Ronneberger et al., 2015) whose encoder has residual blocks, for colour images of any size.

    Args:
        classes: Number of logits of a pixel.
        stem: Channels of the first convolution, which halves the resolution.
        widths: Channels of each stage of the encoder; every stage but the first halves the resolution.
    """

    def __init__(self, classes: int, stem: int = 16, widths: Sequence[int] = (24, 48, 96, 160)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        self.stages = nn.ModuleList()
        previous = stem
        for index, width in enumerate(widths):
            blocks: list[nn.Module] = [ResidualBlock(previous, width, 2 if index else 1)]
            if index:
                blocks.append(ResidualBlock(width, width, 1))
            self.stages.append(nn.Sequential(*blocks))
            previous = width
        self.merges = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.merges.append(_Merge(previous, width, width))
            previous = width
        self.head = nn.Conv2d(previous, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(batch, 3, height, width)`` to logits ``(batch, classes, height, width)``."""
        maps, y = [], self.stem(x)
        for stage in self.stages:
            y = stage(y)
            maps.append(y)
        for merge, fine in zip(self.merges, maps[-2::-1], strict=True):
            y = merge(y, fine)
        logits: Tensor = self.head(y)
        return functional.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)

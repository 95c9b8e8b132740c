"""The detection network of the ready tasks: a residual encoder, a feature pyramid, and a heat-map with boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from edgeopt.tasks.networks.resnet import ResidualBlock

_FIRST_PROBABILITY = 0.1
"""Of an object in any place, before training (Zhou et al., 2019)."""


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class SmallDetector(nn.Module):
    """An anchor-free detector for colour images of any size, with one place for each 4x4 pixels.

    Its feature pyramid (Lin et al., 2017) brings what the coarse maps know to the finest one; two branches give the
    heat-map of object centres (Zhou et al., 2019) and the sides of boxes, as ``edgeopt.tasks.peaks`` reads them.

    Args:
        classes: Kinds of objects.
        stem: Channels of the first convolution, which halves the resolution.
        widths: Channels of each stage of the encoder, each of which halves the resolution.
        pyramid: Channels of the pyramid and of the branches.
    """

    def __init__(
        self, classes: int, stem: int = 24, widths: Sequence[int] = (32, 64, 128, 160), pyramid: int = 64
    ) -> None:
        super().__init__()
        self.stem = _conv(3, stem, 3, 2)
        self.stages, self.laterals, self.mixes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        previous = stem
        for width in widths:
            self.stages.append(nn.Sequential(ResidualBlock(previous, width, 2), ResidualBlock(width, width, 1)))
            self.laterals.append(_conv(width, pyramid, 1))
            previous = width
        for _ in widths[1:]:
            self.mixes.append(_conv(pyramid, pyramid, 3))
        self.heatmap = nn.Sequential(_conv(pyramid, pyramid, 3), nn.Conv2d(pyramid, classes, 1))
        self.sides = nn.Sequential(_conv(pyramid, pyramid, 3), nn.Conv2d(pyramid, 4, 1))
        bias = self.heatmap[-1].bias
        nn.init.constant_(bias, math.log(_FIRST_PROBABILITY / (1 - _FIRST_PROBABILITY)))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images ``(batch, 3, height, width)`` to ``heatmap`` and ``sides``.

        Returns:
            Logits ``(batch, classes, height / 4, width / 4)`` and logarithms of sides ``(batch, 4, ...)``.
        """
        maps, y = [], self.stem(x)
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            y = stage(y)
            maps.append(lateral(y))
        merged = maps[-1]
        for mix, fine in zip(self.mixes, maps[-2::-1], strict=True):
            merged = mix(fine + functional.interpolate(merged, size=fine.shape[-2:], mode="nearest"))
        return {"heatmap": self.heatmap(merged), "sides": self.sides(merged)}

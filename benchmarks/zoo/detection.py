"""Detectors with feature pyramids, without the selection of boxes (which is not part of the network)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Built
from benchmarks.zoo.layers import conv_norm
from benchmarks.zoo.mobile import mobilenet_v2_features

ANCHORS = 6
CLASSES = 5


def separable(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    """Return a depthwise and a pointwise convolution."""
    return nn.Sequential(
        conv_norm(channels, channels, 3, stride, groups=channels, act=nn.ReLU6), nn.Conv2d(channels, out, 1)
    )


class SSDLite(nn.Module):
    """MobileNetV2 and two more levels; boxes and classes of anchors at all four levels."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = mobilenet_v2_features()
        widths = (32, 160, 96, 64)
        self.extra = nn.ModuleList(
            nn.Sequential(conv_norm(source, out // 2, 1, act=nn.ReLU6), separable(out // 2, out, 2), nn.ReLU6())
            for source, out in ((160, 96), (96, 64))
        )
        self.boxes = nn.ModuleList(separable(width, 4 * ANCHORS) for width in widths)
        self.classes = nn.ModuleList(separable(width, CLASSES * ANCHORS) for width in widths)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to (batch, anchors, 4) and (batch, anchors, classes)."""
        levels = [self.backbone[:6](images)]
        levels.append(self.backbone[6:](levels[0]))
        for extra in self.extra:
            levels.append(extra(levels[-1]))
        boxes = [self._rows(head(level), 4) for head, level in zip(self.boxes, levels, strict=True)]
        classes = [self._rows(head(level), CLASSES) for head, level in zip(self.classes, levels, strict=True)]
        return torch.cat(boxes, 1), torch.cat(classes, 1).softmax(-1)

    @staticmethod
    def _rows(x: Tensor, values: int) -> Tensor:
        b, _, h, w = x.shape
        return x.view(b, -1, values, h, w).permute(0, 3, 4, 1, 2).reshape(b, -1, values)


def ssd_lite() -> Built:
    """Separable heads on several levels."""
    return SSDLite(), (torch.randn(1, 3, 96, 96),)


class C2f(nn.Module):
    """Split, a chain of residual bottlenecks, and the concatenation of all steps."""

    def __init__(self, channels: int, out: int, count: int, skip: bool) -> None:
        super().__init__()
        half = out // 2
        self.skip = skip
        self.first = conv_norm(channels, 2 * half, 1, act=nn.SiLU)
        self.last = conv_norm((2 + count) * half, out, 1, act=nn.SiLU)
        self.chain = nn.ModuleList(
            nn.Sequential(conv_norm(half, half, 3, act=nn.SiLU), conv_norm(half, half, 3, act=nn.SiLU))
            for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size."""
        parts = list(self.first(x).chunk(2, 1))
        for layer in self.chain:
            y = layer(parts[-1])
            parts.append(parts[-1] + y if self.skip else y)
        out: Tensor = self.last(torch.cat(parts, 1))
        return out


class PyramidPooling(nn.Module):
    """Three poolings in a row, all of them concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_norm(channels, channels // 2, 1, act=nn.SiLU)
        self.last = conv_norm(2 * channels, channels, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        y: Tensor = self.last(torch.cat(parts, 1))
        return y


class Detect(nn.Module):
    """Boxes as distributions over distances, and classes, for three levels."""

    bins = 8

    def __init__(self, widths: tuple[int, ...], size: int) -> None:
        super().__init__()
        self.boxes = nn.ModuleList(self._head(width, 32, 4 * self.bins) for width in widths)
        self.classes = nn.ModuleList(self._head(width, 48, CLASSES) for width in widths)
        self.register_buffer("distances", torch.arange(self.bins).float().view(1, self.bins, 1, 1))
        centers, strides = [], []
        for stride in (8, 16, 32):
            line = torch.arange(size // stride) + 0.5
            centers.append(torch.stack(torch.meshgrid(line, line, indexing="xy")).flatten(1))
            strides.append(torch.full((1, centers[-1].shape[1]), float(stride)))
        self.register_buffer("centers", torch.cat(centers, 1))
        self.register_buffer("strides", torch.cat(strides, 1))
        self.distances: Tensor
        self.centers: Tensor
        self.strides: Tensor

    @staticmethod
    def _head(channels: int, width: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            conv_norm(channels, width, 3, act=nn.SiLU),
            conv_norm(width, width, 3, act=nn.SiLU),
            nn.Conv2d(width, out, 1),
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return (batch, 4 + classes, positions)."""
        maps = [
            torch.cat([box(x), name(x)], 1).flatten(2)
            for box, name, x in zip(self.boxes, self.classes, levels, strict=True)
        ]
        boxes, classes = torch.cat(maps, 2).split((4 * self.bins, CLASSES), 1)
        sides = boxes.view(boxes.shape[0], 4, self.bins, -1).transpose(1, 2).softmax(1)
        left_top, right_bottom = F.conv2d(sides, self.distances).view(boxes.shape[0], 4, -1).chunk(2, 1)
        one, other = self.centers - left_top, self.centers + right_bottom
        return torch.cat([(one + other) / 2 * self.strides, (other - one) * self.strides, classes.sigmoid()], 1)


class Yolo(nn.Module):
    """A backbone of split blocks, a pyramid down and up, three heads."""

    def __init__(self, size: int) -> None:
        super().__init__()
        w1, w2, w3, w4 = 24, 48, 64, 96
        self.stem = nn.Sequential(
            conv_norm(3, 16, 3, 2, act=nn.SiLU), conv_norm(16, w1, 3, 2, act=nn.SiLU), C2f(w1, w1, 1, True)
        )
        self.stage3 = nn.Sequential(conv_norm(w1, w2, 3, 2, act=nn.SiLU), C2f(w2, w2, 2, True))
        self.stage4 = nn.Sequential(conv_norm(w2, w3, 3, 2, act=nn.SiLU), C2f(w3, w3, 2, True))
        self.stage5 = nn.Sequential(conv_norm(w3, w4, 3, 2, act=nn.SiLU), C2f(w4, w4, 1, True), PyramidPooling(w4))
        self.up4, self.up3 = C2f(w4 + w3, w3, 1, False), C2f(w3 + w2, w2, 1, False)
        self.down3, self.down4 = conv_norm(w2, w2, 3, 2, act=nn.SiLU), conv_norm(w3, w3, 3, 2, act=nn.SiLU)
        self.out4, self.out5 = C2f(w2 + w3, w3, 1, False), C2f(w3 + w4, w4, 1, False)
        self.detect = Detect((w2, w3, w4), size)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to (batch, 4 + classes, positions)."""
        c3 = self.stage3(self.stem(images))
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        p4 = self.up4(torch.cat([F.interpolate(c5, scale_factor=2.0), c4], 1))
        p3 = self.up3(torch.cat([F.interpolate(p4, scale_factor=2.0), c3], 1))
        n4 = self.out4(torch.cat([self.down3(p3), p4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), c5], 1))
        boxes: Tensor = self.detect([p3, n4, n5])
        return boxes


def yolo() -> Built:
    """Split blocks, a path aggregation pyramid, heads over distances."""
    return Yolo(96), (torch.randn(1, 3, 96, 96),)

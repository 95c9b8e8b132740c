"""Maps from images: one class for every pixel."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Built
from benchmarks.zoo.layers import conv_norm
from benchmarks.zoo.mobile import mobilenet_v3_features
from benchmarks.zoo.residual import BasicBlock

IMAGE = (1, 3, 64, 64)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Resize a map to the size of another."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """Down through four levels and up again, with skip concatenations."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 160), classes: int = 5) -> None:
        super().__init__()
        channels = (3, *widths)
        self.down = nn.ModuleList(self._double(*pair) for pair in itertools.pairwise(channels))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(low, high, 2, 2) for low, high in pairs)
        self.join = nn.ModuleList(self._double(2 * high, high) for _, high in pairs)
        self.out = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def _double(channels: int, out: int) -> nn.Sequential:
        return nn.Sequential(conv_norm(channels, out, 3), conv_norm(out, out, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Map images to maps of the same size."""
        passed: list[Tensor] = []
        x = images
        for layer in self.down:
            x = layer(F.max_pool2d(x, 2) if passed else x)
            passed.append(x)
        for up, join, high in zip(self.up, self.join, passed[-2::-1], strict=True):
            x = join(torch.cat([high, up(x)], 1))
        maps: Tensor = self.out(x)
        return maps


def unet() -> Built:
    """Transposed convolutions and skip concatenations."""
    return UNet(), (torch.randn(IMAGE),)


class AtrousPyramid(nn.Module):
    """Dilated convolutions in parallel, and the mean of all positions."""

    def __init__(self, channels: int, out: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm(channels, out, 1)])
        for rate in rates:
            dilated = nn.Conv2d(channels, out, 3, padding=rate, dilation=rate, bias=False)
            self.branches.append(nn.Sequential(dilated, nn.BatchNorm2d(out), nn.ReLU()))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, out, 1), nn.ReLU())
        self.project = nn.Sequential(conv_norm((len(rates) + 2) * out, out, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size."""
        maps = [branch(x) for branch in self.branches] + [resized(self.pooled(x), x)]
        y: Tensor = self.project(torch.cat(maps, 1))
        return y


class DeepLab(nn.Module):
    """A residual backbone and the pyramid, resized to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv_norm(3, 32, 3, 2), BasicBlock(32, 48, 2), BasicBlock(48, 96, 2), BasicBlock(96, 128, 1)
        )
        self.pyramid = AtrousPyramid(128, 64, (2, 4, 6))
        self.head = nn.Sequential(conv_norm(64, 64, 3), nn.Conv2d(64, 5, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images to maps of the same size."""
        return resized(self.head(self.pyramid(self.backbone(images))), images)


def deeplab_v3() -> Built:
    """Atrous spatial pyramid pooling."""
    return DeepLab(), (torch.randn(IMAGE),)


class LRASPP(nn.Module):
    """Two levels of a mobile backbone; the lower one is gated by its own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = mobilenet_v3_features()
        self.cbr = conv_norm(288, 96, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(288, 96, 1, bias=False), nn.Sigmoid())
        self.low, self.high = nn.Conv2d(24, 5, 1), nn.Conv2d(96, 5, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images to a dict with maps of the same size."""
        low = self.backbone[:4](images)
        high = self.backbone[4:](low)
        maps = resized(self.cbr(high) * self.scale(high), low)
        return {"out": resized(self.low(low) + self.high(maps), images)}


def lr_aspp() -> Built:
    """Light reduced atrous pyramid on MobileNetV3."""
    return LRASPP(), (torch.randn(IMAGE),)


class Refine(nn.Module):
    """A convolution, gated by its own mean."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = conv_norm(channels, out, 3)
        self.gate = nn.Sequential(nn.Conv2d(out, out, 1, bias=False), nn.BatchNorm2d(out), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size."""
        y = self.conv(x)
        out: Tensor = y * self.gate(y.mean((2, 3), keepdim=True))
        return out


class BiSeNet(nn.Module):
    """A shallow path with detail and a deep one with context, fused."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(conv_norm(3, 32, 7, 2), conv_norm(32, 32, 3, 2), conv_norm(32, 64, 1))
        self.stem = nn.Sequential(conv_norm(3, 32, 3, 2), BasicBlock(32, 48, 2))
        self.middle, self.deep = BasicBlock(48, 96, 2), BasicBlock(96, 128, 2)
        self.refine_middle, self.refine_deep = Refine(96, 64), Refine(128, 64)
        self.global_context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(128, 64, 1), nn.ReLU())
        self.fuse = conv_norm(128, 96, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(96, 24, 1), nn.ReLU(), nn.Conv2d(24, 96, 1), nn.Sigmoid()
        )
        self.out = nn.Conv2d(96, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to maps of the same size."""
        detail = self.spatial(images)
        middle = self.middle(self.stem(images))
        deep = self.deep(middle)
        context = self.refine_deep(deep) + self.global_context(deep)
        context = self.refine_middle(middle) + F.interpolate(context, scale_factor=2.0)
        context = F.interpolate(context, scale_factor=2.0)
        fused = self.fuse(torch.cat([detail, context], 1))
        return resized(self.out(fused + fused * self.gate(fused)), images)


def bisenet() -> Built:
    """Two paths and attention refinement."""
    return BiSeNet(), (torch.randn(IMAGE),)

"""Convolutional architectures in miniature."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.tasks.networks.resnet import SmallResNet

Built = tuple[nn.Module, tuple[Tensor, ...]]


def resnet() -> Built:
    """Residual sums and strided skips."""
    return SmallResNet(stem=8, widths=(8, 16), blocks=2), (torch.randn(1, 1, 12, 12),)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, with a skip (Sandler et al., 2018)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        wide = channels * 3
        self.skip = stride == 1 and channels == out
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.Hardswish(),
            nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape, or halve it."""
        y: Tensor = self.layers(x)
        return x + y if self.skip else y


def mobilenet() -> Built:
    """Depthwise convolutions."""
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 5),
    )  # fmt: skip
    return body, (torch.randn(1, 3, 16, 16),)


class ShuffleUnit(nn.Module):
    """Split, compute on one half, concatenate, shuffle (Ma et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, half, 3, 1, 1, groups=half), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        left, right = x.chunk(2, dim=1)
        joined = torch.cat([left, self.branch(right)], dim=1)
        n, c, h, w = joined.shape
        return joined.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)


def shufflenet() -> Built:
    """Channel shuffle."""
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), ShuffleUnit(16), ShuffleUnit(16), nn.Conv2d(16, 24, 1), ShuffleUnit(24),
        nn.ChannelShuffle(3), nn.Conv2d(24, 20, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5),
    )  # fmt: skip
    return body, (torch.randn(1, 3, 12, 12),)


class DenseNet(nn.Module):
    """Every layer reads the outputs of all layers before it (Huang et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 6 * i), nn.ReLU(), nn.Conv2d(8 + 6 * i, 6, 3, padding=1)) for i in range(3)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(26), nn.Conv2d(26, 10, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        logits: Tensor = self.head(self.transition(torch.cat(features, 1)).mean((2, 3)))
        return logits


def densenet() -> Built:
    """Concatenation."""
    return DenseNet(), (torch.randn(1, 3, 8, 8),)


class SqueezeExcite(nn.Module):
    """A gate for each channel (Hu et al., 2018), and a concatenation with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.down, self.up = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.norm = nn.GroupNorm(3, 12)
        self.act = nn.PReLU(12)
        self.last = nn.Conv2d(15, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to a map of five values."""
        y = self.act(self.norm(self.conv(x)))
        gate = self.up(F.silu(self.down(F.adaptive_avg_pool2d(y, 1)))).sigmoid()
        out: Tensor = self.last(torch.cat([x, y * gate], 1))
        return out


def squeeze_excite() -> Built:
    """Gates, group norm, PReLU, a concatenation with the input."""
    return SqueezeExcite(), (torch.randn(1, 3, 8, 8),)


def grouped() -> Built:
    """Groups of several channels, depthwise with a multiplier, and transposed convolutions of both kinds."""
    body = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=1, groups=3), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1, groups=24), nn.ReLU(),
        nn.ConvTranspose2d(48, 24, 2, 2, groups=6), nn.ReLU(),
        nn.ConvTranspose2d(24, 24, 2, groups=24), nn.InstanceNorm2d(24, affine=True),
        nn.Conv2d(24, 12, 1, groups=12), nn.Conv2d(12, 4, 1),
    )  # fmt: skip
    return body, (torch.randn(1, 3, 8, 8),)


class UNet(nn.Module):
    """Down, up, and skip concatenations (Ronneberger et al., 2015); pixel shuffle at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.join = nn.Conv2d(28, 16, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to maps of twice the size."""
        high = F.relu(self.down1(x))
        low = F.relu(self.down2(F.max_pool2d(high, 2)))
        resized = F.interpolate(low, scale_factor=2.0, mode="bilinear", align_corners=False)
        y = self.join(F.pad(torch.cat([high, self.up(low), resized], 1), (1, 0, 1, 0))[:, :, 1:, 1:])
        out: Tensor = self.out(F.pixel_shuffle(y, 2))
        return out


def unet() -> Built:
    """Transposed convolution, up-sampling, padding, slices of positions, pixel shuffle."""
    return UNet(), (torch.randn(1, 3, 8, 8),)


def conv1d() -> Built:
    """Audio: one dimension of positions."""
    body = nn.Sequential(
        nn.Conv1d(2, 10, 5, 2), nn.BatchNorm1d(10), nn.ReLU(), nn.Conv1d(10, 10, 3, groups=10), nn.Conv1d(10, 8, 1),
        nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    return body, (torch.randn(1, 2, 40),)

"""Small image classifiers for phones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Built
from benchmarks.zoo.layers import InvertedResidual, SqueezeExcite, classifier, conv_norm

IMAGE = (1, 3, 64, 64)


def mobilenet_v2_features() -> nn.Sequential:
    """Return the layers before the classifier: 160 channels at 1/16 of the size; layer 5 is at 1/8."""
    settings = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 2), (6, 96, 1, 1))
    layers: list[nn.Module] = [conv_norm(3, 16, 3, 2, act=nn.ReLU6)]
    channels = 16
    for expansion, out, count, stride in settings:
        for index in range(count):
            layers.append(InvertedResidual(channels, expansion * channels, out, 3, 1 if index else stride))
            channels = out
    return nn.Sequential(*layers, conv_norm(channels, 160, 1, act=nn.ReLU6))


def mobilenet_v2() -> Built:
    """Inverted residuals."""
    return nn.Sequential(mobilenet_v2_features(), classifier(160, 10)), (torch.randn(IMAGE),)


def mobilenet_v3_features() -> nn.Sequential:
    """Return the layers before the classifier: 288 channels at 1/16 of the size; layer 3 has 24 at 1/8."""
    rows = (
        (3, 16, 16, True, nn.ReLU, 2), (3, 72, 24, False, nn.ReLU, 2), (3, 88, 24, False, nn.ReLU, 1),
        (5, 96, 40, True, nn.Hardswish, 2), (5, 240, 40, True, nn.Hardswish, 1), (5, 120, 48, True, nn.Hardswish, 1),
    )  # fmt: skip
    layers: list[nn.Module] = [conv_norm(3, 16, 3, 1, act=nn.Hardswish)]
    channels = 16
    for kernel, wide, out, squeeze, act, stride in rows:
        gate = SqueezeExcite(wide, wide // 4, gate=nn.Hardsigmoid) if squeeze else None
        layers.append(InvertedResidual(channels, wide, out, kernel, stride, act, gate))
        channels = out
    return nn.Sequential(*layers, conv_norm(channels, 288, 1, act=nn.Hardswish))


def mobilenet_v3() -> Built:
    """Hard swish and squeeze-excite."""
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(288, 256), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(256, 10)
    )
    return nn.Sequential(mobilenet_v3_features(), head), (torch.randn(IMAGE),)


def efficientnet() -> Built:
    """SiLU, squeeze-excite narrower than the block's input."""
    rows = ((3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 2, 1), (5, 6, 112, 1, 1))
    layers: list[nn.Module] = [conv_norm(3, 24, 3, 2, act=nn.SiLU)]
    channels = 24
    for kernel, expansion, out, stride, count in rows:
        for index in range(count):
            wide = expansion * channels
            gate = SqueezeExcite(wide, max(1, channels // 4), act=nn.SiLU)
            layers.append(InvertedResidual(channels, wide, out, kernel, 1 if index else stride, nn.SiLU, gate))
            channels = out
    layers.append(conv_norm(channels, 320, 1, act=nn.SiLU))
    return nn.Sequential(nn.Sequential(*layers), classifier(320, 10)), (torch.randn(IMAGE),)


class ShuffleBlock(nn.Module):
    """Half of the channels pass, half are computed; then both are shuffled."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        half, source = out // 2, channels if stride > 1 else out // 2
        self.stride = stride
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                conv_norm(channels, channels, 3, stride, groups=channels, act=nn.Identity), conv_norm(channels, half, 1)
            )
        self.branch2 = nn.Sequential(
            conv_norm(source, half, 1),
            conv_norm(half, half, 3, stride, groups=half, act=nn.Identity),
            conv_norm(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or halve it."""
        if self.stride > 1:
            y = torch.cat([self.branch1(x), self.branch2(x)], 1)
        else:
            left, right = x.chunk(2, 1)
            y = torch.cat([left, self.branch2(right)], 1)
        b, c, h, w = y.size()
        return y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def shufflenet_v2() -> Built:
    """Channel split and shuffle."""
    layers: list[nn.Module] = [conv_norm(3, 24, 3, 2)]
    channels = 24
    for out, count in ((48, 3), (96, 4), (192, 3)):
        for index in range(count):
            layers.append(ShuffleBlock(channels, out, 1 if index else 2))
            channels = out
    layers.append(conv_norm(channels, 384, 1))
    return nn.Sequential(nn.Sequential(*layers), classifier(384, 10)), (torch.randn(IMAGE),)


class Fire(nn.Module):
    """Squeeze, then two expansions in parallel."""

    def __init__(self, channels: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, narrow, 1)
        self.expand1, self.expand3 = nn.Conv2d(narrow, wide, 1), nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size."""
        y = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.expand1(y), inplace=True), F.relu(self.expand3(y), inplace=True)], 1)


def squeezenet() -> Built:
    """Fire modules; the last convolution computes the classes."""
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(128, 32, 128), Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192),
        nn.Dropout(0.5), nn.Conv2d(384, 10, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return model, (torch.randn(IMAGE),)


class Ghost(nn.Module):
    """Half of the channels from a convolution, half computed cheaply from them; cut to the requested number."""

    def __init__(self, channels: int, out: int, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.out, half = out, (out + 1) // 2
        self.primary = conv_norm(channels, half, 1, act=act)
        self.cheap = conv_norm(half, half, 3, groups=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size."""
        one = self.primary(x)
        return torch.cat([one, self.cheap(one)], 1)[:, : self.out]


class GhostBottleneck(nn.Module):
    """Two ghost modules with an optional gate between them, and a depthwise convolution if the size halves."""

    def __init__(self, channels: int, wide: int, out: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        down = conv_norm(wide, wide, 3, stride, groups=wide, act=nn.Identity) if stride > 1 else nn.Identity()
        gate = SqueezeExcite(wide, wide // 4, gate=nn.Hardsigmoid) if squeeze else nn.Identity()
        self.layers = nn.Sequential(Ghost(channels, wide), down, gate, Ghost(wide, out, nn.Identity))
        self.skip = nn.Sequential()
        if stride > 1 or channels != out:
            depthwise = conv_norm(channels, channels, 3, stride, groups=channels, act=nn.Identity)
            self.skip = nn.Sequential(depthwise, conv_norm(channels, out, 1, act=nn.Identity))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or halve it."""
        y: Tensor = self.layers(x) + self.skip(x)
        return y


def ghostnet() -> Built:
    """Cheap copies of channels, concatenated."""
    rows = (
        (16, 16, 1, False),
        (48, 24, 2, False),
        (72, 24, 1, False),
        (72, 40, 2, True),
        (120, 40, 1, True),
        (240, 80, 2, False),
    )
    layers: list[nn.Module] = [conv_norm(3, 16, 3, 2)]
    channels = 16
    for wide, out, stride, squeeze in rows:
        layers.append(GhostBottleneck(channels, wide, out, stride, squeeze))
        channels = out
    layers.append(conv_norm(channels, 240, 1))
    return nn.Sequential(nn.Sequential(*layers), classifier(240, 10)), (torch.randn(IMAGE),)

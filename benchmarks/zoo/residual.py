"""Image classifiers with residual sums of ordinary and grouped convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Built
from benchmarks.zoo.layers import SqueezeExcite, conv_norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.downsample = _skip(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or halve it."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a skip."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _skip(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or halve it."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y += self.downsample(x)
        out: Tensor = self.relu(y)
        return out


def _skip(channels: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """A stem and four stages."""

    def __init__(self, block: type[BasicBlock | Bottleneck], counts: tuple[int, ...], base: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, base, 7, 2, 3, bias=False), nn.BatchNorm2d(base)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, blocks = base, []
        for stage, count in enumerate(counts):
            width = base * 2**stage
            for index in range(count):
                blocks.append(block(channels, width, 2 if stage and not index else 1))
                channels = width * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.blocks(self.maxpool(F.relu(self.bn1(self.conv1(images)))))
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


def resnet18() -> Built:
    """Basic blocks at half the usual width."""
    return ResNet(BasicBlock, (2, 2, 2, 2), 32, 10), (torch.randn(1, 3, 64, 64),)


def resnet50() -> Built:
    """Bottlenecks, full size."""
    return ResNet(Bottleneck, (3, 4, 6, 3), 64, 1000), (torch.randn(1, 3, 224, 224),)


class RegNetBlock(nn.Module):
    """A bottleneck of grouped convolutions with squeeze-excite."""

    def __init__(self, channels: int, width: int, stride: int, group: int) -> None:
        super().__init__()
        self.a = conv_norm(channels, width, 1)
        self.b = conv_norm(width, width, 3, stride, groups=width // group)
        self.se = SqueezeExcite(width, channels // 4)
        self.c = conv_norm(width, width, 1, act=nn.Identity)
        self.skip = _skip(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or halve it."""
        return F.relu(self.c(self.se(self.b(self.a(x)))) + self.skip(x))


def regnet() -> Built:
    """RegNetY: groups of 8 channels, squeeze-excite."""
    blocks, channels = [], 32
    for width, count in ((48, 1), (104, 2), (208, 3)):
        for index in range(count):
            blocks.append(RegNetBlock(channels, width, 1 if index else 2, 8))
            channels = width
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return nn.Sequential(conv_norm(3, 32, 3, 2), *blocks, head), (torch.randn(1, 3, 64, 64),)


class RepVGGBlock(nn.Module):
    """The sum of a 3x3 convolution, a 1x1 convolution and the input, each with a batch norm."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.dense = conv_norm(channels, out, 3, stride, act=nn.Identity)
        self.pointwise = conv_norm(channels, out, 1, stride, act=nn.Identity)
        self.identity = nn.BatchNorm2d(channels) if stride == 1 and channels == out else None

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or halve it."""
        y = self.dense(x) + self.pointwise(x)
        return F.relu(y if self.identity is None else y + self.identity(x))


def repvgg() -> Built:
    """Three branches in each layer."""
    blocks, channels = [], 3
    for width, count in ((48, 1), (48, 2), (96, 3), (128, 2)):
        for index in range(count):
            blocks.append(RepVGGBlock(channels, width, 1 if index else 2))
            channels = width
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return nn.Sequential(*blocks, head), (torch.randn(1, 3, 64, 64),)


class ConvNeXtBlock(nn.Module):
    """A wide depthwise convolution, then linear layers over channels, scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, channels, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext() -> Built:
    """Three stages."""
    layers: list[nn.Module] = [nn.Conv2d(3, 48, 4, 4), ChannelNorm(48)]
    for width, count in ((48, 2), (96, 2), (192, 2)):
        layers += [ConvNeXtBlock(width) for _ in range(count)]
        if width < 192:
            layers += [ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, 2)]
    head = [nn.AdaptiveAvgPool2d(1), ChannelNorm(192), nn.Flatten(), nn.Linear(192, 10)]
    return nn.Sequential(*layers, *head), (torch.randn(1, 3, 64, 64),)

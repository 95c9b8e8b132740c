"""Convolutional image classifiers: normalizer-free, split, selective, re-parametrized, conditional, aggregated."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built
from benchmarks.zoo.layers import SqueezeExcite, classifier, conv_norm

IMAGE = (2, 3, 64, 64)


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weight a batch norm standardizes for each output channel, with a learned gain."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, kernel // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(out, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or divide it by the stride."""
        rows, scale = self.weight.reshape(1, self.out_channels, -1), self.weight[0].numel() ** -0.5
        weight = F.batch_norm(
            rows, None, None, weight=(self.gain * scale).view(-1), training=True, momentum=0.0, eps=1e-6
        )
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NFBlock(nn.Module):
    """A normalizer-free bottleneck of grouped convolutions: scaled input, gate, learned gain of the branch."""

    def __init__(self, channels: int, out: int, stride: int, beta: float) -> None:
        super().__init__()
        width = out // 2
        self.beta = beta
        self.shortcut = StandardizedConv2d(channels, out, 1) if stride > 1 or channels != out else None
        self.conv1 = StandardizedConv2d(channels, width, 1)
        self.conv2 = StandardizedConv2d(width, width, 3, stride, groups=width // 16)
        self.conv3 = StandardizedConv2d(width, out, 1)
        self.gate = SqueezeExcite(out, out // 4)
        self.skip_gain = nn.Parameter(torch.zeros(()))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or halve it."""
        y = F.gelu(x) * 1.7015 * self.beta
        skip = x
        if self.shortcut is not None:
            skip = self.shortcut(F.avg_pool2d(y, 2) if self.stride > 1 else y)
        y = self.conv2(F.gelu(self.conv1(y)) * 1.7015)
        y = self.gate(self.conv3(F.gelu(y) * 1.7015)) * 2
        return y * self.skip_gain * 0.2 + skip


def nfnet() -> Built:
    """Weight standardization instead of batch norm."""
    blocks = [NFBlock(32, 64, 1, 1.0), NFBlock(64, 128, 2, 0.98), NFBlock(128, 192, 2, 0.95)]
    body = nn.Sequential(StandardizedConv2d(3, 16, 3, 2), nn.GELU(), StandardizedConv2d(16, 32, 3, 2), *blocks)
    return nn.Sequential(body, nn.GELU(), classifier(192, 10)), (torch.randn(IMAGE),)


class MobileOneConv(nn.Module):
    """Several equal convolutions, a 1x1 convolution and a batch norm in parallel, summed."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int, branches: int) -> None:
        super().__init__()
        none = nn.Identity
        self.branches = nn.ModuleList(
            conv_norm(channels, out, kernel, stride, groups=groups, act=none) for _ in range(branches)
        )
        self.scale = conv_norm(channels, out, 1, stride, groups=groups, act=none) if kernel > 1 else None
        self.skip = nn.BatchNorm2d(channels) if channels == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or divide it by the stride."""
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out = out + branch(x)
        if self.scale is not None:
            out = out + self.scale(x)
        return F.relu(out if self.skip is None else out + self.skip(x))


def mobileone() -> Built:
    """Depthwise and pointwise layers with many branches in training."""
    layers: list[nn.Module] = [MobileOneConv(3, 32, 3, 2, 1, 1)]
    channels = 32
    for out, stride in ((48, 2), (48, 1), (96, 2), (96, 1), (128, 2)):
        layers += [MobileOneConv(channels, channels, 3, stride, channels, 2), MobileOneConv(channels, out, 1, 1, 1, 2)]
        channels = out
    return nn.Sequential(*layers, classifier(channels, 10)), (torch.randn(IMAGE),)


class CondConv2d(nn.Module):
    """A convolution whose weight is mixed from experts for each sample; the batch is folded into its groups."""

    def __init__(self, channels: int, out: int, kernel: int, experts: int = 4) -> None:
        super().__init__()
        self.channels, self.out, self.kernel = channels, out, kernel
        self.weight = nn.Parameter(0.1 * torch.randn(experts, out * channels * kernel * kernel))
        self.bias = nn.Parameter(torch.randn(experts, out))

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        """Map (batch, channels, h, w) and the experts' shares of each sample to (batch, out, h, w)."""
        b, c, h, w = x.shape
        weight = torch.matmul(routing, self.weight).view(b * self.out, self.channels, self.kernel, self.kernel)
        bias = torch.matmul(routing, self.bias).view(b * self.out)
        y = F.conv2d(x.reshape(1, b * c, h, w), weight, bias, padding=self.kernel // 2, groups=b)
        return y.view(b, self.out, h, w)


class CondNet(nn.Module):
    """Routing by the mean of the input, a 1x1 and a 3x3 conditional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 32, 3, 2), conv_norm(32, 48, 3, 2))
        self.route = nn.Linear(48, 4)
        self.wide, self.norm_wide = CondConv2d(48, 96, 1), nn.BatchNorm2d(96)
        self.narrow, self.norm_narrow = CondConv2d(96, 64, 3), nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.stem(images)
        routing = torch.sigmoid(self.route(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        x = F.silu(self.norm_wide(self.wide(x, routing)))
        x = F.silu(self.norm_narrow(self.narrow(x, routing)))
        return self.head(x.mean((2, 3)))


def condconv() -> Built:
    """Experts of convolutions."""
    return CondNet(), (torch.randn(IMAGE),)


class Res2Block(nn.Module):
    """A bottleneck whose 3x3 convolutions see one part of the channels each, and the part before."""

    def __init__(self, channels: int, width: int, parts: int = 4) -> None:
        super().__init__()
        self.parts, self.width = parts, width
        self.reduce, self.expand = conv_norm(channels, width * parts, 1), conv_norm(width * parts, channels, 1)
        self.convs = nn.ModuleList(conv_norm(width, width, 3) for _ in range(parts - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        spx = torch.split(self.reduce(x), self.width, 1)
        y = self.convs[0](spx[1])
        out = torch.cat((spx[0], y), 1)
        for conv, part in zip(self.convs[1:], spx[2:], strict=True):
            y = conv(y + part)
            out = torch.cat((out, y), 1)
        return F.relu(self.expand(out) + x)


def res2net() -> Built:
    """A hierarchy within each block."""
    layers = [conv_norm(3, 32, 3, 2), conv_norm(32, 64, 3, 2), Res2Block(64, 16), conv_norm(64, 96, 3, 2)]
    return nn.Sequential(*layers, Res2Block(96, 24), classifier(96, 10)), (torch.randn(IMAGE),)


class SplitAttention(nn.Module):
    """Grouped convolution to several copies of the channels, summed with a softmax over the copies."""

    def __init__(self, channels: int, groups: int = 2, radix: int = 2) -> None:
        super().__init__()
        self.groups, self.radix, self.channels = groups, radix, channels
        self.conv = conv_norm(channels, channels * radix, 3, groups=groups * radix)
        self.fc1 = nn.Sequential(nn.Conv2d(channels, 32, 1, groups=groups), nn.BatchNorm2d(32), nn.ReLU())
        self.fc2 = nn.Conv2d(32, channels * radix, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        x = self.conv(x)
        batch = x.shape[0]
        parts = torch.split(x, self.channels, dim=1)
        gap = F.adaptive_avg_pool2d(parts[0] + parts[1], 1)
        attention = self.fc2(self.fc1(gap)).view(batch, self.groups, self.radix, -1).transpose(1, 2)
        attention = F.softmax(attention, dim=1).reshape(batch, -1, 1, 1)
        first, second = torch.split(attention, self.channels, dim=1)
        return first * parts[0] + second * parts[1]


def resnest() -> Built:
    """Split attention in residual blocks."""
    return nn.Sequential(
        conv_norm(3, 32, 3, 2), conv_norm(32, 64, 3, 2), SplitAttention(64), conv_norm(64, 96, 1), nn.MaxPool2d(2),
        SplitAttention(96), conv_norm(96, 128, 1), classifier(128, 10),
    ), (torch.randn(IMAGE),)  # fmt: skip


class SelectiveKernel(nn.Module):
    """Two kernels, and for each channel a softmax between them (stacked)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.small = conv_norm(channels, channels, 3, groups=8)
        self.large = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=8, bias=False), nn.BatchNorm2d(channels),
            nn.ReLU(),
        )  # fmt: skip
        self.reduce = nn.Sequential(nn.Linear(channels, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())
        self.select = nn.ModuleList(nn.Linear(32, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        feats = torch.stack([self.small(x), self.large(x)], dim=1)
        z = self.reduce(feats.sum(dim=1).mean(-1).mean(-1))
        weights = torch.softmax(torch.stack([select(z) for select in self.select], dim=1), dim=1)
        return (feats * weights.unsqueeze(-1).unsqueeze(-1)).sum(dim=1)


def sknet() -> Built:
    """Selective kernels."""
    return nn.Sequential(
        conv_norm(3, 32, 3, 2), conv_norm(32, 64, 1), SelectiveKernel(64), conv_norm(64, 96, 1), nn.AvgPool2d(2),
        SelectiveKernel(96), conv_norm(96, 128, 1), classifier(128, 10),
    ), (torch.randn(IMAGE),)  # fmt: skip


class CBAM(nn.Module):
    """A gate for each channel, then one for each position, from means and maxima."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, channels // 8), nn.ReLU(), nn.Linear(channels // 8, channels))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        average = F.avg_pool2d(x, (x.size(2), x.size(3))).flatten(1)
        largest = F.max_pool2d(x, (x.size(2), x.size(3))).flatten(1)
        scale = torch.sigmoid(self.mlp(average) + self.mlp(largest)).unsqueeze(2).unsqueeze(3).expand_as(x)
        x = x * scale
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial(pooled))


def cbam() -> Built:
    """Convolutions with channel and spatial attention."""
    layers = [conv_norm(3, 32, 3, 2), CBAM(32), conv_norm(32, 64, 3, 2), CBAM(64), conv_norm(64, 128, 3, 2), CBAM(128)]
    return nn.Sequential(*layers, classifier(128, 10)), (torch.randn(IMAGE),)


class OneShot(nn.Module):
    """A chain of convolutions whose results are concatenated once, gated, and added to the input."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__()
        self.chain = nn.ModuleList(conv_norm(width if i else channels, width, 3) for i in range(count))
        self.join = conv_norm(channels + count * width, channels, 1)
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        parts = [x]
        for layer in self.chain:
            parts.append(layer(parts[-1]))
        y = self.join(torch.cat(parts, 1))
        return x + y * F.hardsigmoid(self.fc(y.mean((2, 3), keepdim=True)))


def vovnet() -> Built:
    """One-shot aggregation with effective squeeze-excite."""
    layers = [conv_norm(3, 32, 3, 2), conv_norm(32, 64, 3, 2), OneShot(64, 32, 3), conv_norm(64, 96, 3, 2)]
    return nn.Sequential(*layers, OneShot(96, 48, 3), classifier(96, 10)), (torch.randn(IMAGE),)


class DualPath(nn.Module):
    """Part of each block's result is added to the residual path, the rest is appended to the dense path."""

    def __init__(self, residual: int, dense: int, width: int, grow: int) -> None:
        super().__init__()
        self.residual = residual
        self.body = nn.Sequential(
            conv_norm(residual + dense, width, 1), conv_norm(width, width, 3, groups=8),
            conv_norm(width, residual + grow, 1, act=nn.Identity),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Grow the dense path."""
        y = self.body(x)
        d = self.residual
        return F.relu(torch.cat([x[:, :d] + y[:, :d], x[:, d:], y[:, d:]], 1))


def dpn() -> Built:
    """Dual path blocks."""
    blocks = [DualPath(64, 32 + 16 * i, 64, 16) for i in range(3)]
    stem = [conv_norm(3, 32, 3, 2), conv_norm(32, 96, 3, 2)]
    return nn.Sequential(*stem, *blocks, classifier(64 + 32 + 48, 10)), (torch.randn(IMAGE),)


class CoordinateAttention(nn.Module):
    """Gates along rows and columns from pooled strips that are concatenated, and split again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = conv_norm(channels, 16, 1, act=nn.Hardswish)
        self.rows, self.columns = nn.Conv2d(16, channels, 1), nn.Conv2d(16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        _, _, h, w = x.size()
        strips = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], dim=2)
        rows, columns = torch.split(self.reduce(strips), [h, w], dim=2)
        return x * self.columns(columns.permute(0, 1, 3, 2)).sigmoid() * self.rows(rows).sigmoid()


class EfficientChannel(nn.Module):
    """A gate for each channel from its neighbours: a convolution over the channels themselves."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        return x * torch.sigmoid(self.conv(y).transpose(-1, -2).unsqueeze(-1)).expand_as(x)


def coordinate_attention() -> Built:
    """Position-aware gates in a mobile network."""
    layers = [conv_norm(3, 32, 3, 2), conv_norm(32, 64, 3, 2), CoordinateAttention(64), conv_norm(64, 128, 3, 2)]
    return nn.Sequential(*layers, CoordinateAttention(128), classifier(128, 10)), (torch.randn(IMAGE),)


def eca_net() -> Built:
    """Efficient channel attention. The layers in front of it are positions of its convolution and cannot shrink."""
    layers = [conv_norm(3, 32, 3, 2), conv_norm(32, 64, 3, 2), EfficientChannel(), conv_norm(64, 96, 3, 2)]
    return nn.Sequential(*layers, conv_norm(96, 128, 1), classifier(128, 10)), (torch.randn(IMAGE),)


CLASSIFIERS: dict[str, Architecture] = {
    "nfnet": Architecture(nfnet, "Brock et al., 2021", ("2.3",)),
    "mobileone": Architecture(mobileone, "Vasu et al., 2023", ("11.3",)),
    "condconv": Architecture(condconv, "Yang et al., 2019", ("head", "route", "wide", "narrow")),
    "res2net": Architecture(res2net, "Gao et al., 2019", ("5.3",)),
    "resnest": Architecture(resnest, "Zhang et al., 2020", ("7.3",)),
    "sknet": Architecture(sknet, "Li et al., 2019", ("7.3",)),
    "cbam": Architecture(cbam, "Woo et al., 2018", ("6.3",)),
    "vovnet": Architecture(vovnet, "Lee and Park, 2020", ("5.3",)),
    "dpn": Architecture(dpn, "Chen et al., 2017", ("5.3",)),
    "coordinate_attention": Architecture(coordinate_attention, "Hou et al., 2021", ("5.3",)),
    "eca_net": Architecture(eca_net, "Wang et al., 2020", ("5.3", "1.0", "2.conv")),
}

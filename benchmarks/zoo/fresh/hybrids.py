"""Image classifiers between convolution, attention and plain linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built
from benchmarks.zoo.layers import InvertedResidual, classifier, conv_norm

IMAGE = (2, 3, 64, 64)


class SpatialGate(nn.Module):
    """Half of the channels gates the other half, after a linear layer over positions."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width // 2)
        self.proj = nn.Conv1d(tokens, tokens, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the channels."""
        u, v = x.chunk(2, dim=-1)
        return u * self.proj(self.norm(v))


class GatedBlock(nn.Module):
    """Wide, spatial gate, back, and a skip."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.gate, self.out = SpatialGate(4 * width, tokens), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return x + self.out(self.gate(F.gelu(self.inner(self.norm(x)))))


class PatchClassifier(nn.Module):
    """Patches, blocks on (batch, tokens, width), the mean, a linear layer."""

    def __init__(self, width: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, width, 8, 8), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def gmlp() -> Built:
    """Spatial gating units."""
    return PatchClassifier(64, *(GatedBlock(64, 64) for _ in range(3))), (torch.randn(IMAGE),)


class Affine(nn.Module):
    """A scale and an offset for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return torch.addcmul(self.beta, self.alpha, x)


class ResMLPBlock(nn.Module):
    """A linear layer over positions, then two over channels, with affine layers for norms."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Affine(width), Affine(width)
        self.tokens = nn.Linear(tokens, tokens)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale1, self.scale2 = (nn.Parameter(0.1 * torch.ones(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        x = x + self.scale1 * self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.scale2 * self.mlp(self.norm2(x))


def resmlp() -> Built:
    """No norm, no attention."""
    return PatchClassifier(64, *(ResMLPBlock(64, 64) for _ in range(3))), (torch.randn(IMAGE),)


class CrossCovariance(nn.Module):
    """Attention between channels: normalized queries and keys over positions, a learned temperature."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        y = (attention.softmax(dim=-1) @ v).permute(0, 3, 1, 2).reshape(b, n, c)
        return x + self.proj(y)


def xcit() -> Built:
    """Cross-covariance attention."""
    return PatchClassifier(64, *(CrossCovariance(64) for _ in range(3))), (torch.randn(IMAGE),)


class PoolBlock(nn.Module):
    """The difference to the local mean in place of attention, then two 1x1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.mlp = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))
        self.scale1, self.scale2 = (nn.Parameter(0.1 * torch.ones(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        y = self.norm1(x)
        x = x + self.scale1.unsqueeze(-1).unsqueeze(-1) * (self.pool(y) - y)
        return x + self.scale2.unsqueeze(-1).unsqueeze(-1) * self.mlp(self.norm2(x))


def poolformer() -> Built:
    """Average pooling mixes the tokens."""
    layers = [nn.Conv2d(3, 32, 7, 4, 3), PoolBlock(32), nn.Conv2d(32, 64, 3, 2, 1), PoolBlock(64)]
    return nn.Sequential(*layers, nn.GroupNorm(1, 64), classifier(64, 10)), (torch.randn(IMAGE),)


class MapAttention(nn.Module):
    """Attention over all positions of a map with a learned bias for each relative position."""

    def __init__(self, width: int, size: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.depth, self.size = heads, width // heads, size
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.table = nn.Parameter(0.1 * torch.randn((2 * size - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        offset = grid[:, :, None] - grid[:, None, :] + size - 1
        self.register_buffer("index", offset[0] * (2 * size - 1) + offset[1])
        self.index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, tokens, width)."""
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, self.heads, 3 * self.depth).split(self.depth, dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        attention = (q @ k) * self.depth**-0.5 + self.table[self.index].permute(2, 0, 1)
        y = (attention.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c)
        return x + self.proj(y)


class CoAtNet(nn.Module):
    """Inverted residuals at high resolution, relative attention at low."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 32, 3, 2, act=nn.GELU), conv_norm(32, 32, 3, 2, act=nn.GELU))
        self.local = nn.Sequential(
            InvertedResidual(32, 128, 64, stride=2, act=nn.GELU), InvertedResidual(64, 256, 64, act=nn.GELU)
        )
        self.widen = nn.Conv2d(64, 96, 1)
        self.attention = nn.Sequential(MapAttention(96, 4), MapAttention(96, 4))
        self.head = nn.Linear(96, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.widen(F.max_pool2d(self.local(self.stem(images)), 2))
        return self.head(self.attention(x.flatten(2).transpose(1, 2)).mean(1))


def coatnet() -> Built:
    """Convolution, then attention."""
    return CoAtNet(), (torch.randn(IMAGE),)


class MaxViTBlock(nn.Module):
    """Inverted residual, attention within blocks, attention across a grid."""

    def __init__(self, channels: int, out: int, part: int) -> None:
        super().__init__()
        self.conv, self.part = InvertedResidual(channels, 4 * out, out, stride=2, act=nn.GELU), part
        self.block, self.grid = MapAttention(out, part), MapAttention(out, part)

    def forward(self, images: Tensor) -> Tensor:
        """Halve the size."""
        x = self.conv(images).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        p = self.part
        x = x.view(b, h // p, p, w // p, p, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, p * p, c)
        x = self.block(x).view(b, h // p, w // p, p, p, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x.view(b, p, h // p, p, w // p, c).permute(0, 2, 4, 1, 3, 5).contiguous().view(-1, p * p, c)
        x = self.grid(x).view(b, h // p, w // p, p, p, c).permute(0, 3, 1, 4, 2, 5).reshape(b, h, w, c)
        return x.permute(0, 3, 1, 2).contiguous()


def maxvit() -> Built:
    """Multi-axis attention."""
    layers = [conv_norm(3, 32, 3, 2, act=nn.GELU), MaxViTBlock(32, 48, 4), MaxViTBlock(48, 96, 4)]
    return nn.Sequential(*layers, classifier(96, 10)), (torch.randn(IMAGE),)


class SplitDepthwise(nn.Module):
    """Depthwise convolutions over a chain of channel splits, cross-covariance attention, a wide pair of layers."""

    def __init__(self, width: int, scales: int = 3) -> None:
        super().__init__()
        self.part = width // scales
        self.convs = nn.ModuleList(
            nn.Conv2d(self.part, self.part, 3, 1, 1, groups=self.part) for _ in range(scales - 1)
        )
        self.attention = CrossCovariance(width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        parts = torch.split(x, self.part, 1)
        sums = [self.convs[0](parts[0])]
        for i in range(1, len(self.convs)):
            sums.append(self.convs[i](sums[-1] + parts[i]))
        y = torch.cat([*sums, parts[-1]], 1)
        b, c, h, w = y.shape
        y = self.attention(y.reshape(b, c, h * w).permute(0, 2, 1)).reshape(b, h, w, c)
        y = self.gamma * self.back(F.gelu(self.wide(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


def edgenext() -> Built:
    """Split depthwise transpose attention."""
    layers = [nn.Conv2d(3, 48, 4, 4), SplitDepthwise(48), nn.Conv2d(48, 96, 2, 2), SplitDepthwise(96)]
    return nn.Sequential(*layers, classifier(96, 10)), (torch.randn(IMAGE),)


class ReducedAttention(nn.Module):
    """Keys and values from a map of a lower resolution."""

    def __init__(self, width: int, reduce: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.sr, self.norm = nn.Conv2d(width, width, reduce, reduce), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, width, h, w)."""
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q = self.q(tokens).reshape(b, h * w, self.heads, c // self.heads).permute(0, 2, 1, 3)
        small = self.norm(self.sr(x).reshape(b, c, -1).permute(0, 2, 1))
        k, v = self.kv(small).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v).transpose(1, 2).reshape(b, h * w, c)
        tokens = tokens + self.proj(y)
        return (tokens + self.mlp(tokens)).transpose(1, 2).reshape(b, c, h, w)


def pvt() -> Built:
    """A pyramid of attention with reduced keys."""
    layers = [nn.Conv2d(3, 48, 4, 4), ReducedAttention(48, 4), nn.Conv2d(48, 96, 2, 2), ReducedAttention(96, 2)]
    return nn.Sequential(*layers, classifier(96, 10)), (torch.randn(IMAGE),)


class FocalModulation(nn.Module):
    """Contexts of growing size, each with its gate, modulate a query."""

    def __init__(self, width: int, levels: int = 2) -> None:
        super().__init__()
        self.width, self.levels = width, levels
        self.f, self.h, self.proj = (
            nn.Linear(width, 2 * width + levels + 1),
            nn.Conv2d(width, width, 1),
            nn.Linear(width, width),
        )
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3 + 2 * k, 1, 1 + k, groups=width, bias=False), nn.GELU())
            for k in range(levels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, width, h, w)."""
        q, ctx, gates = torch.split(
            self.f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), [self.width, self.width, self.levels + 1], 1
        )
        total = torch.zeros_like(ctx)
        for level, layer in enumerate(self.layers):
            ctx = layer(ctx)
            total = total + ctx * gates[:, level : level + 1]
        pooled = F.gelu(ctx.mean(2, keepdim=True).mean(3, keepdim=True))
        total = total + pooled * gates[:, self.levels :]
        return x + self.proj((q * self.h(total)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def focalnet() -> Built:
    """Focal modulation."""
    layers = [nn.Conv2d(3, 48, 4, 4), FocalModulation(48), nn.Conv2d(48, 96, 2, 2), FocalModulation(96)]
    return nn.Sequential(*layers, classifier(96, 10)), (torch.randn(IMAGE),)


TOKENS = tuple(f"blocks.{i}.{layer}" for i in range(3) for layer in ("gate.proj", "tokens"))
HYBRIDS: dict[str, Architecture] = {
    "gmlp": Architecture(gmlp, "Liu et al., 2021", ("head", *TOKENS[::2])),
    "resmlp": Architecture(resmlp, "Touvron et al., 2021", ("head", *TOKENS[1::2])),
    "xcit": Architecture(xcit, "El-Nouby et al., 2021", ("head",)),
    "poolformer": Architecture(poolformer, "Yu et al., 2022", ("5.3",)),
    "coatnet": Architecture(coatnet, "Dai et al., 2021", ("head",)),
    "maxvit": Architecture(maxvit, "Tu et al., 2022", ("3.3",)),
    "edgenext": Architecture(edgenext, "Maaz et al., 2022", ("4.3",)),
    "pvt": Architecture(pvt, "Wang et al., 2021", ("4.3",)),
    "focalnet": Architecture(focalnet, "Yang et al., 2022", ("4.3",)),
}

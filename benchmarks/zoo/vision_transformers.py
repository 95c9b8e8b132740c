"""Attention over image patches, and a mixer without attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Built


class PackedAttention(nn.Module):
    """Attention with one linear layer for queries, keys and values, as most image transformers write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, length, width)."""
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(out.transpose(1, 2).reshape(b, n, c))
        return y


class FeedForward(nn.Sequential):
    """Wide, GELU, back."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__(nn.Linear(width, wide), nn.GELU(), nn.Dropout(0.1), nn.Linear(wide, width))


class ViTBlock(nn.Module):
    """Norm before attention and before the feed-forward layers."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = PackedAttention(width, heads)
        self.mlp = FeedForward(width, wide)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class ViT(nn.Module):
    """Patches, a class token, learned positions, encoder blocks."""

    def __init__(self, blocks: nn.Module, width: int, size: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 3, size, size) to logits."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


def vit() -> Built:
    """Packed queries, keys and values, fused attention."""
    blocks = nn.Sequential(*(ViTBlock(128, 4, 384) for _ in range(4)))
    return ViT(blocks, 128, 64, 8, 10), (torch.randn(1, 3, 64, 64),)


def vit_multihead() -> Built:
    """The same encoder from torch's own layers (``nn.MultiheadAttention``)."""
    layer = nn.TransformerEncoderLayer(128, 4, 384, activation="gelu", batch_first=True, norm_first=True)
    blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    return ViT(blocks, 128, 64, 8, 10), (torch.randn(1, 3, 64, 64),)


class WindowAttention(nn.Module):
    """Attention within a window, with a learned bias for each relative position, hand-written."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        relative = (grid[:, :, None] - grid[:, None, :]) + window - 1
        self.register_buffer("index", (relative[0] * (2 * window - 1) + relative[1]).flatten())
        self.index: Tensor

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Keep the shape (windows, positions, width); ``mask`` is (windows of an image, positions, positions)."""
        b, n, c = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.bias_table[self.index].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, n, n) + mask[None, :, None]
            scores = scores.view(-1, self.heads, n, n)
        y: Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))
        return y


class SwinBlock(nn.Module):
    """Attention within windows that are shifted in every second block."""

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window)
        self.mlp = FeedForward(width, 2 * width)
        self.register_buffer("mask", self._mask() if shift else None)
        self.mask: Tensor | None

    def _mask(self) -> Tensor:
        """Mask pairs of positions that the shift brought into one window from different sides of the image."""
        edges = torch.zeros(self.size, dtype=torch.long)
        edges[self.size - self.window : self.size - self.shift] = 1
        edges[self.size - self.shift :] = 2
        regions = (3 * edges[:, None] + edges[None, :]).view(1, self.size, self.size, 1).float()
        windows = self._windows(regions).squeeze(-1)
        return torch.zeros(1).where(windows[:, None, :] == windows[:, :, None], torch.tensor(-100.0))

    def _windows(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        s = self.window
        return x.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, size, size, width)."""
        b, h, w, c = x.shape
        s = self.window
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self.attention(self._windows(y), self.mask)
        y = y.view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours become one, with twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, h, w, width) to (batch, h / 2, w / 2, 2 width)."""
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, -1)))
        return merged


class Swin(nn.Module):
    """Windows that shift, in stages."""

    def __init__(self, width: int, heads: tuple[int, ...], size: int, window: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.norm_embed = nn.LayerNorm(width)
        stages: list[nn.Module] = []
        side = size // 4
        for stage, count in enumerate(heads):
            if stage:
                stages.append(PatchMerging(width))
                width, side = 2 * width, side // 2
            stages += [SwinBlock(width, count, side, window, shift) for shift in (0, window // 2)]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.norm_embed(self.patch_embed(images).permute(0, 2, 3, 1))
        logits: Tensor = self.head(self.norm(self.stages(x)).mean((1, 2)))
        return logits


def swin() -> Built:
    """Windowed attention with roll, a mask and relative positions."""
    return Swin(48, (3, 6), 64, 4, 10), (torch.randn(1, 3, 64, 64),)


class MixerBlock(nn.Module):
    """One pair of linear layers over positions, and one over channels."""

    def __init__(self, positions: int, width: int, token_width: int, channel_width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = FeedForward(positions, token_width)
        self.channels = FeedForward(width, channel_width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, positions, width)."""
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = x + self.channels(self.norm2(x))
        return y


class Mixer(nn.Module):
    """Patches and mixer blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 128, 8, 8)
        self.blocks = nn.Sequential(*(MixerBlock(64, 128, 96, 384) for _ in range(4)))
        self.norm = nn.LayerNorm(128)
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.blocks(self.patch_embed(images).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def mixer() -> Built:
    """Linear layers over positions, whose number is fixed by the image."""
    return Mixer(), (torch.randn(1, 3, 64, 64),)

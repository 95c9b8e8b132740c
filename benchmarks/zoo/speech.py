"""Audio: encoders with attention, and small convolutional networks for keyword spotting."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Built


class ConvolutionModule(nn.Module):
    """Gate, depthwise convolution over time, batch norm."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.project = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, time, width)."""
        y = F.glu(self.expand(self.norm(x).transpose(1, 2)), dim=1)
        y = F.silu(self.batch_norm(self.depthwise(y)))
        out: Tensor = self.project(y).transpose(1, 2)
        return out


class ConformerBlock(nn.Module):
    """Half a feed-forward layer, attention, convolution, the other half."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.after = self._half(width), self._half(width)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        self.convolution = ConvolutionModule(width, 15)

    @staticmethod
    def _half(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, time, width)."""
        x = x + 0.5 * self.before(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.convolution(x)
        out: Tensor = self.last(x + 0.5 * self.after(x))
        return out


class Conformer(nn.Module):
    """Subsampling by two convolutions, blocks, a label for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU())
        self.project = nn.Linear(32 * 10, 96)
        self.blocks = nn.Sequential(*(ConformerBlock(96, 4) for _ in range(3)))
        self.head = nn.Linear(96, 30)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Map (batch, time, 40) to (batch, time / 4, 30)."""
        y = self.subsample(spectrogram.unsqueeze(1))
        b, c, t, f = y.shape
        logits: Tensor = self.head(self.blocks(self.project(y.transpose(1, 2).reshape(b, t, c * f))))
        return logits


def conformer() -> Built:
    """Attention and depthwise convolution in one block."""
    return Conformer(), (torch.randn(1, 64, 40),)


class Wav2Vec(nn.Module):
    """Convolutions over the waveform, a convolution that encodes positions, a transformer, a classifier."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 64, 10, 5, bias=False), nn.GroupNorm(64, 64), nn.GELU(),
            *(part for _ in range(3) for part in (nn.Conv1d(64, 64, 3, 2, bias=False), nn.GELU())),
        )  # fmt: skip
        self.norm = nn.LayerNorm(64)
        self.project = nn.Linear(64, width)
        position = nn.Conv1d(width, width, 16, padding=8, groups=8)
        self.position = nn.utils.parametrizations.weight_norm(position, dim=2)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.pool = nn.Linear(width, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, wave: Tensor) -> Tensor:
        """Map (batch, samples) to logits."""
        x = self.project(self.norm(self.features(wave.unsqueeze(1)).transpose(1, 2)))
        x = x + F.gelu(self.position(x.transpose(1, 2))[:, :, :-1]).transpose(1, 2)
        logits: Tensor = self.head(self.pool(self.encoder(x)).mean(1))
        return logits


def wav2vec() -> Built:
    """Group norm with one channel per group, weight norm, a grouped convolution."""
    return Wav2Vec(), (torch.randn(1, 3200),)


class DSConv(nn.Sequential):
    """Depthwise, then pointwise."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        )  # fmt: skip


def ds_cnn() -> Built:
    """Depthwise separable convolutions for keywords."""
    model = nn.Sequential(
        nn.Conv2d(1, 172, (10, 4), (2, 2), (5, 1), bias=False), nn.BatchNorm2d(172), nn.ReLU(), nn.Dropout(0.2),
        *(DSConv(172) for _ in range(5)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(172, 12),
    )  # fmt: skip
    return model, (torch.randn(1, 1, 49, 10),)


class TCBlock(nn.Module):
    """Two convolutions over time and a skip."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, out, 9, 2, 4, bias=False)
        self.conv2 = nn.Conv1d(out, out, 9, 1, 4, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm1d(out), nn.BatchNorm1d(out)
        self.skip = nn.Sequential(nn.Conv1d(channels, out, 1, 2, bias=False), nn.BatchNorm1d(out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Halve the time."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def tc_resnet() -> Built:
    """Frequencies as channels, convolutions over time."""
    widths = (24, 36, 48, 72)
    blocks = [TCBlock(*pair) for pair in itertools.pairwise(widths)]
    model = nn.Sequential(
        nn.Conv1d(40, 24, 3, padding=1, bias=False), *blocks,
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 12),
    )  # fmt: skip
    return model, (torch.randn(1, 40, 98),)

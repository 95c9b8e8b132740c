"""Forecasts of time series: residual stacks, patches, decomposition."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built

WIDTH = 64


class NBeats(nn.Module):
    """Stacks of linear layers whose backcast is taken from the input; a Fourier and a free basis."""

    def __init__(self, back: int = 32, ahead: int = 8, width: int = 64) -> None:
        super().__init__()
        self.back, self.ahead = back, ahead
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(back, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()) for _ in range(2)
        )
        self.free = nn.Linear(width, back + ahead)
        t = torch.arange(back + ahead) / ahead
        basis = torch.cat([torch.cos(2 * math.pi * k * t)[None] for k in range(4)])
        self.register_buffer("basis", basis)
        self.basis: Tensor
        self.theta = nn.Linear(width, 4, bias=False)

    def forward(self, series: Tensor) -> Tensor:
        """Map (batch, back) to (batch, ahead)."""
        theta = self.theta(self.layers[0](series)) @ self.basis
        rest, forecast = series - theta[:, : self.back], theta[:, self.back :]
        back, ahead = self.free(self.layers[1](rest)).split([self.back, self.ahead], dim=-1)
        return forecast + ahead + 0 * (rest - back).sum(-1, keepdim=True)


def nbeats() -> Built:
    """Doubly residual forecasts."""
    return NBeats(), (torch.randn(2, 32),)


class PatchForecaster(nn.Module):
    """Each series normalized by itself, patches by unfold, an encoder of torch's own layers, a flat head."""

    def __init__(self, series: int = 4, length: int = 48, ahead: int = 8) -> None:
        super().__init__()
        self.series, self.ahead = series, ahead
        self.embed, self.place = nn.Linear(16, WIDTH), nn.Parameter(0.02 * torch.randn(5, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 128, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(5 * WIDTH, ahead)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, series) to (batch, ahead, series)."""
        mean = x.mean(1, keepdim=True).detach()
        std = torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5).detach()
        z = ((x - mean) / std).permute(0, 2, 1).unfold(-1, 16, 8)
        z = self.embed(z).reshape(-1, 5, WIDTH) + self.place
        z = self.encoder(z).reshape(-1, self.series, 5 * WIDTH)
        return self.head(z).permute(0, 2, 1) * std + mean


def patch_tst() -> Built:
    """Patches of series."""
    return PatchForecaster(), (torch.randn(2, 48, 4),)


class Autocorrelation(nn.Module):
    """Delays with the highest correlation, found by Fourier transforms, weigh rolled values."""

    def __init__(self, width: int = WIDTH, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        b, length, d = x.shape
        q, k, v = (layer(x).view(b, length, self.heads, -1).permute(0, 2, 3, 1) for layer in (self.q, self.k, self.v))
        spectrum = torch.fft.rfft(q, dim=-1) * torch.conj(torch.fft.rfft(k, dim=-1))
        corr = torch.fft.irfft(spectrum, n=length, dim=-1)
        weights, delay = torch.topk(corr.mean(dim=1).mean(dim=1), 3, dim=-1)
        weights = torch.softmax(weights, dim=-1)
        index = torch.arange(length).view(1, 1, 1, length).repeat(b, self.heads, v.shape[2], 1)
        doubled = v.repeat(1, 1, 1, 2)
        total = torch.zeros_like(v)
        for i in range(3):
            rolled = torch.gather(doubled, dim=-1, index=index + delay[:, i].view(-1, 1, 1, 1))
            total = total + rolled * weights[:, i].view(-1, 1, 1, 1)
        return self.o(total.permute(0, 3, 1, 2).reshape(b, length, d))


class Autoformer(nn.Module):
    """Moving averages split trend from season in each block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(3, WIDTH, 3, padding=1, padding_mode="circular", bias=False)
        self.attention, self.average = Autocorrelation(), nn.AvgPool1d(5, 1)
        self.conv1, self.conv2 = nn.Conv1d(WIDTH, 128, 1, bias=False), nn.Conv1d(128, WIDTH, 1, bias=False)
        self.head = nn.Linear(WIDTH, 3)

    def season(self, x: Tensor) -> Tensor:
        """Return the series less its moving average, with repeated ends."""
        padded = torch.cat([x[:, 0:1].repeat(1, 2, 1), x, x[:, -1:].repeat(1, 2, 1)], dim=1)
        return x - self.average(padded.permute(0, 2, 1)).permute(0, 2, 1)

    def forward(self, series: Tensor) -> Tensor:
        """Map (batch, length, 3) to the same shape."""
        x = self.embed(series.permute(0, 2, 1)).transpose(1, 2)
        x = self.season(x + self.attention(x))
        y = self.conv2(F.gelu(self.conv1(x.transpose(-1, 1)))).transpose(-1, 1)
        return self.head(self.season(x + y))


def autoformer() -> Built:
    """Decomposition and autocorrelation (as Informer)."""
    return Autoformer(), (torch.randn(2, 24, 3),)


FORECASTS: dict[str, Architecture] = {
    "nbeats": Architecture(nbeats, "Oreshkin et al., 2020", ("free", "theta")),
    "patch_tst": Architecture(patch_tst, "Nie et al., 2023", ("head",)),
    "autoformer": Architecture(autoformer, "Wu et al., 2021; Zhou et al., 2021", ("head",)),
}

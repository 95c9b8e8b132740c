"""Signal front ends as modules: log-mel bands of a waveform, so that the file takes sound as it is recorded."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


def mel_filters(rate: int, size: int, bands: int) -> NDArray[np.float32]:
    """Return triangular filters ``(size // 2 + 1, bands)``, evenly spaced in mel (O'Shaughnessy, 1987).

    Args:
        rate: Samples a second.
        size: Of the Fourier transform.
        bands: Number of filters.
    """
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), bands + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, size // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


class LogMel(nn.Module):
    """Logarithms of the energy in mel bands, by ``torch.stft``.

    Args:
        rate: Samples a second.
        size: Samples of a window, which is a Hann window.
        hop: Samples from one window to the next.
        bands: Number of bands.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, rate: int, size: int = 256, hop: int = 80, bands: int = 40) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.register_buffer("window", torch.hann_window(size))
        self.register_buffer("filters", torch.from_numpy(mel_filters(rate, size, bands)))

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms ``(batch, samples)`` to ``(batch, bands, 1 + samples // hop)``."""
        spectrum = torch.stft(x, self.size, self.hop, window=self.window, return_complex=True)
        energy = torch.view_as_real(spectrum).square().sum(-1)
        return torch.log((energy.transpose(1, 2) @ self.filters).transpose(1, 2) + 1e-6)


class ConvolutionLogMel(nn.Module):
    """The same numbers as those of ``LogMel``, by a convolution with the sines and cosines of the transform.

    Args:
        rate: Samples a second.
        size: Samples of a window, which is a Hann window.
        hop: Samples from one window to the next.
        bands: Number of bands.
        center: Whether the first window has its middle at the first sample, as those of ``torch.stft`` do; otherwise it
            begins there, as chunks of a stream need it.
    """

    waves: Tensor
    filters: Tensor

    def __init__(self, rate: int, size: int = 256, hop: int = 80, bands: int = 40, *, center: bool = True) -> None:
        super().__init__()
        self.size, self.hop, self.center = size, hop, center
        angles = 2 * torch.pi * torch.arange(size // 2 + 1)[:, None] * torch.arange(size) / size
        waves = torch.cat([angles.cos(), angles.sin()]) * torch.hann_window(size)
        self.register_buffer("waves", waves[:, None])
        self.register_buffer("filters", torch.from_numpy(mel_filters(rate, size, bands)).t()[:, :, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms ``(batch, samples)`` to ``(batch, bands, windows)``.

        ``1 + samples // hop`` windows, or ``1 + (samples - size) // hop`` without ``center``.
        """
        waves = x[:, None]
        if self.center:
            waves = functional.pad(waves, [self.size // 2] * 2, mode="reflect")
        cosines, sines = functional.conv1d(waves, self.waves, stride=self.hop).chunk(2, dim=1)
        return torch.log(functional.conv1d(cosines.square() + sines.square(), self.filters) + 1e-6)

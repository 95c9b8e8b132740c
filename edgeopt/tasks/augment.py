"""Random changes to image batches that keep the label: flip, shift, erase. Each draws from the given generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def flip_horizontally(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror a random half of ``images`` ``(batch, channels, height, width)``."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def shift(images: Tensor, generator: torch.Generator, pixels: int = 2) -> Tensor:
    """Move each image by up to ``pixels`` in both directions; the pixels that move in are zero."""
    batch, channels, height, width = images.shape
    padded = functional.pad(images, [pixels] * 4)
    rows = torch.randint(2 * pixels + 1, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * pixels + 1, (batch, 1), generator=generator) + torch.arange(width)
    row_index = rows[:, None, :, None].expand(batch, channels, height, padded.shape[-1])
    column_index = columns[:, None, None, :].expand(batch, channels, height, width)
    return padded.gather(2, row_index).gather(3, column_index)


def erase(images: Tensor, generator: torch.Generator, size: int = 8, ratio: float = 0.5) -> Tensor:
    """Zero one ``size`` by ``size`` square in a random ``ratio`` of the images (DeVries and Taylor, 2017, Cutout)."""
    batch, _, height, width = images.shape
    top = torch.randint(1 - size, height, (batch, 1, 1), generator=generator)
    left = torch.randint(1 - size, width, (batch, 1, 1), generator=generator)
    rows = torch.arange(height)[None, :, None]
    columns = torch.arange(width)[None, None, :]
    inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    inside &= torch.rand(batch, 1, 1, generator=generator) < ratio
    return images.masked_fill(inside[:, None], 0.0)

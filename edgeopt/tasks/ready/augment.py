"""Random changes to image batches that keep the label: flip, shift, erase, cut. Each draws from the given generator."""

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


def change_scenes(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror a random half of the images with their labels, cut and enlarge each, and change its light and contrast.

    Args:
        images: ``(batch, channels, height, width)``.
        labels: ``(batch, height, width)``, class numbers.
        generator: Draws.
    """
    grid = _draw_views(images, generator, 0.6, mirror=True)
    options = {"padding_mode": "border", "align_corners": False}
    images = functional.grid_sample(images, grid, mode="bilinear", **options)  # type: ignore[arg-type]
    moved = functional.grid_sample(labels[:, None].float(), grid, mode="nearest", **options)  # type: ignore[arg-type]
    contrast, light = 0.8 + 0.4 * torch.rand(2, len(images), 1, 1, 1, generator=generator)
    return images * contrast + (light - 1), moved[:, 0].long()


def change_views(images: Tensor, generator: torch.Generator, least_ratio: float, *, mirror: bool) -> Tensor:
    """Cut a random part out of each image and enlarge it to the size of the whole.

    Args:
        images: ``(batch, channels, height, width)``.
        generator: Draws.
        least_ratio: Smallest part of each side; 1 keeps the whole.
        mirror: Whether a random half is mirrored.
    """
    grid = _draw_views(images, generator, least_ratio, mirror=mirror)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _draw_views(images: Tensor, generator: torch.Generator, least_ratio: float, *, mirror: bool) -> Tensor:
    """Return a grid for ``grid_sample`` of a random part of each image."""
    batch, _, height, width = images.shape
    cut = least_ratio + (1 - least_ratio) * torch.rand(batch, generator=generator)
    mirrored = torch.where(torch.rand(batch, generator=generator) < (0.5 if mirror else 0.0), -1.0, 1.0)
    transform = torch.zeros(batch, 2, 3)
    transform[:, 0, 0], transform[:, 1, 1] = cut * mirrored, cut
    transform[:, :, 2] = (2 * torch.rand(batch, 2, generator=generator) - 1) * (1 - cut)[:, None]
    return functional.affine_grid(transform, [batch, 1, height, width], align_corners=False)

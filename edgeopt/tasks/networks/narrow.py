"""Widths of narrower networks of the same family, as references for the ready tasks."""

from __future__ import annotations

from collections.abc import Iterable

_BLOCK = 8
"""Channels that kernels compute at a time; widths are multiples of it."""


def narrow(widths: Iterable[int], ratio: float) -> list[int]:
    """Return widths times ``ratio``, as the nearest multiples of 8, at least 8."""
    return [max(_BLOCK, _BLOCK * round(width * ratio / _BLOCK)) for width in widths]

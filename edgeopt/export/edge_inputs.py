"""Inputs at the edge of what a network takes: zeros, ones, tiny and large values.

Parity compares files on them too. On the examples alone nobody sees that an exporter dropped the ``+ 1e-9`` of a
division: it shows only if the sum is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Arrays = dict[str, NDArray[Any]]

LARGE = "every value is 1,000 times an example's"
_TINY_RATIO = 1e-9
_LARGE_RATIO = 1e3
_MASKING_LIMIT = -1e4
"""A value below this belongs to an additive mask, which has no sense at other sizes."""


def make_edge_inputs(examples: Mapping[str, NDArray[Any]]) -> list[tuple[str, _Arrays]]:
    """Return batches of edge inputs, each with words that follow *if*; none if no input holds quantities.

    Args:
        examples: A small batch of real inputs. Token ids, flags and masks in it stay as they are.
    """
    changed = [name for name, values in examples.items() if _holds_quantities(values)]
    if not changed:
        return []

    def replace(names: list[str], change: Any) -> _Arrays:
        return {name: change(value) if name in names else value for name, value in examples.items()}

    made = [
        ("every value is 0", replace(changed, np.zeros_like)),
        ("every value is 1", replace(changed, np.ones_like)),
        ("every value is 1e-9 of an example's", replace(changed, lambda value: value * value.dtype.type(_TINY_RATIO))),
        (LARGE, replace(changed, lambda value: value * value.dtype.type(_LARGE_RATIO))),
    ]
    if len(changed) > 1:
        made += [(f"every value of '{name}' is 0", replace([name], np.zeros_like)) for name in changed]
    return made


def _holds_quantities(values: NDArray[Any]) -> bool:
    """Tell whether an input holds quantities: floats that are more than two values, and no additive mask."""
    if not np.issubdtype(values.dtype, np.floating) or values.size == 0 or not np.isfinite(values).all():
        return False
    return bool(values.min() > _MASKING_LIMIT) and len(np.unique(values)) > 2

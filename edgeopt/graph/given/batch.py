"""Which dimension of each input is the batch, by what a graph says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_LIKE_A_BATCH = re.compile(r"batch", re.IGNORECASE)
_POSITIONS = (0, 1)
"""Dimensions that are a batch in practice: the first, or the second after layers or time."""

Declared = Sequence[int | str]
"""Dimensions of an input; a dynamic one is its name, which may be empty."""


def find_declared_batch(inputs: Mapping[str, Declared | None]) -> dict[str, int | None]:
    """Return the dimension of each input that is the batch; None for a single number, which has none.

    The batch has the same name everywhere. An input such as a state of ``[2, batch, 128]`` has it in dimension 1, and
    so has one whose first dimension is fixed and whose second is its only dynamic one, next to inputs whose first is
    dynamic. Otherwise it is the first dimension.

    Args:
        inputs: Name to dimensions; None if the graph does not declare them.
    """
    batch = _batch_name(dims for dims in inputs.values() if dims)
    has_dynamic = any(dims and isinstance(dims[0], str) for dims in inputs.values())
    axes: dict[str, int | None] = {}
    for name, dims in inputs.items():
        dynamic = [axis for axis, size in enumerate(dims or ()) if isinstance(size, str)]
        if dims is not None and not dims:
            axes[name] = None
        elif batch and dims and batch in dims[: len(_POSITIONS)]:
            axes[name] = dims.index(batch)
        else:
            axes[name] = 1 if has_dynamic and dims and isinstance(dims[0], int) and dynamic == [1] else 0
    return axes


def _batch_name(inputs: Iterable[Declared]) -> str:
    """Return the name of the batch: one that reads like it, or else the most frequent in the first dimension."""
    listed = list(inputs)
    names = [size for dims in listed for size in dims[: len(_POSITIONS)] if isinstance(size, str)]
    named = [name for name in names if is_like_batch(name)]
    first = [dims[0] for dims in listed if isinstance(dims[0], str) and dims[0]]
    found = Counter(named or first).most_common(1)
    return found[0][0] if found else ""


def is_like_batch(name: str) -> bool:
    """Tell whether the name of a dimension says that it is the batch."""
    return bool(_LIKE_A_BATCH.search(name))

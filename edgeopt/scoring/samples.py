"""Outputs and targets of any nesting taken apart into samples and put together again.

Batches are taken apart along the first axis of every array. That is possible if every array of a batch has as many
rows as the batch has samples. Targets (or outputs) that are a list with one entry for each sample, as those of
detection are, are taken apart as that list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Pair = tuple[Any, Any]


class SampleSet:
    """Pairs of outputs and targets in batches, from which samples can be drawn.

    Args:
        pairs: Outputs and targets of each batch.
        counts: Samples in each batch.
    """

    def __init__(self, pairs: Sequence[Pair], counts: Sequence[int]) -> None:
        self.pairs = pairs
        self.counts = counts
        self._lists = tuple(_are_lists([pair[part] for pair in pairs], counts) for part in (0, 1))
        self.can_be_drawn = all(
            is_list or all(_has_rows(pair[part], count) for pair, count in zip(pairs, counts, strict=True))
            for part, is_list in enumerate(self._lists)
        )
        """Whether every batch can be taken apart."""

    def draw(self, chosen: Sequence[int]) -> list[Pair]:
        """Return batches made of some samples, those of a batch from the same batch.

        Args:
            chosen: Numbers of samples in the order of the set; a number that occurs twice is taken twice.
        """
        order, end, batches = np.sort(np.asarray(chosen)), 0, []
        for pair, count in zip(self.pairs, self.counts, strict=True):
            begin, end = end, end + count
            rows = order[np.searchsorted(order, begin) : np.searchsorted(order, end)] - begin
            if len(rows):
                outputs, targets = (self._take(part, pair[part], rows) for part in (0, 1))
                batches.append((outputs, targets))
        return batches

    def _take(self, part: int, value: Any, rows: Any) -> Any:
        if not self._lists[part]:
            return _take_rows(value, rows)
        picked = [value[row] for row in rows.tolist()]
        return tuple(picked) if isinstance(value, tuple) else picked


def _are_lists(values: Sequence[Any], counts: Sequence[int]) -> bool:
    """Tell whether every batch is a list with an entry for each sample, and not a tuple of arrays."""
    if not all(isinstance(value, tuple | list) for value in values):
        return False
    is_counted = all(len(value) == count for value, count in zip(values, counts, strict=True))
    return is_counted and not all(_has_rows(value, count) for value, count in zip(values, counts, strict=True))


def _has_rows(value: Any, count: int) -> bool:
    """Tell whether every array in ``value`` has ``count`` rows."""
    if value is None:
        return True
    if isinstance(value, dict):
        return all(_has_rows(item, count) for item in value.values())
    if isinstance(value, tuple | list):
        return all(_has_rows(item, count) for item in value)
    return np.ndim(value) > 0 and len(value) == count


def _take_rows(value: Any, rows: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: _take_rows(item, rows) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_take_rows(item, rows) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return np.asarray(value)[rows]


def shift_targets(pairs: Sequence[Pair], counts: Sequence[int], shift: int) -> list[Pair] | None:
    """Return the outputs with the targets of other samples of the same set; None if there are no others to give.

    Batches of the same size exchange their targets, as far away as possible because a set may be sorted; within a batch
    targets move by ``shift`` samples.

    Args:
        pairs: Outputs and targets of each batch.
        counts: Samples in each batch.
        shift: How many samples.
    """
    lists = _are_lists([targets for _, targets in pairs], counts)
    rows_known = lists or all(_has_rows(targets, count) for (_, targets), count in zip(pairs, counts, strict=True))
    moved: list[Pair] = []
    for index, ((outputs, _), count) in enumerate(zip(pairs, counts, strict=True)):
        others = [at for at, other in enumerate(counts) if other == count]
        place = others.index(index)
        targets = pairs[others[(place + len(others) // 2) % len(others)]][1]
        if rows_known and count > 1:
            order = np.roll(np.arange(count), shift)
            targets = type(targets)(targets[row] for row in order) if lists else _take_rows(targets, order)
        elif len(others) < 2:
            return None
        moved.append((outputs, targets))
    return moved

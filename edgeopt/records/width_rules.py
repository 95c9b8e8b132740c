"""``WidthRules``: which channels a user wants left alone, and how narrow layers may become."""

from __future__ import annotations

import msgspec

from edgeopt.records.base import Record


class WidthRules(Record, frozen=True, kw_only=True):
    """Globs over the names of parameters and modules; ``*`` matches dots too."""

    keep: tuple[str, ...] = ()
    """Tensors that match keep their shape."""
    min_widths: dict[str, int] = msgspec.field(default_factory=dict)
    """The least number of output channels of layers that match."""

    def joined(self, other: WidthRules) -> WidthRules:
        """Return both; for the same glob, the least width of ``other`` counts."""
        keep = dict.fromkeys((*self.keep, *other.keep))
        return WidthRules(keep=tuple(keep), min_widths=self.min_widths | other.min_widths)

    @property
    def globs(self) -> tuple[str, ...]:
        """Every glob."""
        return (*self.keep, *self.min_widths)

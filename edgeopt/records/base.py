"""The base of all records: frozen, keyword-only, no unknown fields."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value. Tuples not lists; units in names; ratios in 0..1; ``None`` means absent."""

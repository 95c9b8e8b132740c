"""Rows of tables for ids that never occur in the training data: what a user asked for, and what a file kept."""

from __future__ import annotations

import msgspec

from edgeopt.records.base import Record


class UnseenRows(Record, frozen=True, kw_only=True):
    """Whether rows that no training sample reads may go, and what ids without a row of their own read then."""

    drop: bool = False
    unknown_ids: dict[str, int] = msgspec.field(default_factory=dict)
    """Input to the id whose row they read; for other inputs it is the mean of the dropped rows."""

    def joined(self, other: UnseenRows) -> UnseenRows:
        """Return both; for the same input, the id of ``other`` counts."""
        return UnseenRows(drop=self.drop or other.drop, unknown_ids=self.unknown_ids | other.unknown_ids)


class KeptRows(Record, frozen=True, kw_only=True):
    """What is left of one table."""

    inputs: tuple[str, ...]
    """Of the model, whose ids read it."""
    rows: int
    """Of the table before."""
    kept: int
    """Rows of ids of their own."""
    ids: str
    """Which ids have one: a bit for each row, the first one highest, deflated, in base64."""
    unknown_id: int | None
    """The id whose row all others read; None for the mean of the dropped rows."""

    @property
    def sentence(self) -> str:
        """Which rows there are, and what other ids read."""
        other = "the mean of the dropped rows" if self.unknown_id is None else f"the row of id {self.unknown_id}"
        named = " and ".join(f"'{name}'" for name in self.inputs)
        return (
            f"{self.kept:,} of {self.rows:,} rows kept, for the ids of {named} that occur in the training data; every "
            f"other id reads {other}"
        )

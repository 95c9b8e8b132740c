"""``LatencyTable``: how long each layer of a network takes on a device, at several widths, as it runs in the chain."""

from __future__ import annotations

from edgeopt.records.base import Record
from edgeopt.records.groups import Dimension
from edgeopt.records.profile import Precision


class LayerTime(Record, frozen=True, kw_only=True):
    """A layer at one pair (or more) of widths."""

    sizes: tuple[int, ...]
    """Of the dimensions that follow widths, in the layer's order."""
    ns: float


class Layer(Record, frozen=True, kw_only=True):
    """One node of the graph, with what runs between it and the next one: layout changes, and nodes fused into it."""

    name: str
    operator: str
    shape: str
    """Operator, attributes and shapes, with letters for what follows widths: equal layers of any network agree."""
    dimensions: tuple[Dimension, ...]
    """Which of its sizes follow the network's widths: none, the channels of its input and output, or more."""
    times: tuple[LayerTime, ...]


class WholeTime(Record, frozen=True, kw_only=True):
    """The whole network at one choice of widths, without the profiler."""

    widths: dict[str, int]
    ns: float
    """Of one run on one batch."""


class LatencyTable(Record, frozen=True, kw_only=True):
    """One network on one device, in one precision; the original comes first in ``wholes``."""

    device: str
    """``Device.id``."""
    runtime: str
    precision: Precision
    threads: int
    batch_size: int
    layers: tuple[Layer, ...]
    wholes: tuple[WholeTime, ...]
    seconds: float
    """What the measuring took."""


class NoLatencyTable(Record, frozen=True, kw_only=True):
    """Why there is none; kept, so that a build that goes on decides as it began."""

    reason: str


class Allocation(Record, frozen=True, kw_only=True):
    """How many channels each group keeps, and how sure it is that no better choice exists."""

    widths: dict[str, int]
    """Of the groups that lose channels."""
    gap_ratio: float | None
    """Proven: no choice loses less than (1 - this) of the importance that this one loses; None without a proof."""
    latency_ratio: float | None
    """Predicted, over the original's in the same precision; None where the work was counted instead."""
    notes: tuple[str, ...]

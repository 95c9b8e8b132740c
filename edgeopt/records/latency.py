"""``LatencyTable``: the time of each layer of a network on a device, at several widths, as it runs in the network."""

from __future__ import annotations

from edgeopt.records.base import Record
from edgeopt.records.groups import Dimension
from edgeopt.records.profile import Precision


class LayerTime(Record, frozen=True, kw_only=True):
    """A layer at one pair (or more) of widths."""

    sizes: tuple[int, ...]
    """Of the dimensions that depend on widths, in the layer's order."""
    ns: float


class Layer(Record, frozen=True, kw_only=True):
    """One node of the graph, with the layout changes up to the next one and the nodes fused into it."""

    name: str
    operator: str
    shape: str
    """Operator, attributes and shapes, with letters for sizes that depend on widths: the same for equal layers."""
    dimensions: tuple[Dimension, ...]
    """Its sizes that depend on the network's widths: none, the channels of its input and output, or more."""
    times: tuple[LayerTime, ...]


class NetworkTime(Record, frozen=True, kw_only=True):
    """The time of the whole network at one choice of widths, without the profiler."""

    widths: dict[str, int]
    ns: float
    """Of one run on one batch."""


class LatencyTable(Record, frozen=True, kw_only=True):
    """One network on one device, in one precision."""

    device: str
    """``Device.id``."""
    runtime: str
    precision: Precision
    threads: int
    batch_size: int
    layers: tuple[Layer, ...]
    wholes: tuple[NetworkTime, ...]
    """Times of the whole network; the original comes first."""
    seconds: float
    """How long the measuring took."""


class NoLatencyTable(Record, frozen=True, kw_only=True):
    """Why there is no table. It is stored, so that a build that is resumed decides as it began."""

    reason: str


class Allocation(Record, frozen=True, kw_only=True):
    """How many channels each group keeps, and how sure it is that no better choice exists."""

    widths: dict[str, int]
    """Of the groups that lose channels."""
    gap_ratio: float | None
    """Proven: no choice loses less than (1 - this) of the importance that this one loses; None without a proof."""
    latency_ratio: float | None
    """Predicted, over the original's in the same precision; None if work was counted instead."""
    notes: tuple[str, ...]

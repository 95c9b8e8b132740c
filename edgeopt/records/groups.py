"""``GroupTable``: what the search has to know of a network's channels to decide widths, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgeopt.records.base import Record


class ChannelGroup(Record, frozen=True, kw_only=True):
    """Channels that live on the same dimensions of the same tensors."""

    name: str
    channels: int
    importance: tuple[float, ...]
    """One score a channel, in the order of the channels; empty for a frozen group."""
    frozen_by: str | None
    """What keeps all of its channels; None where they can go."""


class Dimension(Record, frozen=True, kw_only=True):
    """The size of one dimension of a tensor: a fixed part, and so many indices for each channel of some groups."""

    fixed: int
    per_channel: dict[str, int]

    def size(self, widths: Mapping[str, int]) -> int:
        """Return its size when the groups have these numbers of channels."""
        return self.fixed + sum(count * widths[group] for group, count in self.per_channel.items())


class WeightShape(Record, frozen=True, kw_only=True):
    """One trainable tensor."""

    name: str
    dims: tuple[Dimension, ...]
    macs_per_weight: int
    """How often each of its numbers is multiplied for one sample (output positions); 0 for biases and norms."""
    values_per_weight: int
    """For the weight of a batch norm: how many values of one sample each of its numbers scales; 0 for all others."""

    def numbers(self, widths: Mapping[str, int]) -> int:
        """Return how many numbers it holds."""
        return math.prod(dimension.size(widths) for dimension in self.dims)


class GroupTable(Record, frozen=True, kw_only=True):
    """All groups and all trainable tensors of a network.

    Parameters are exact for any widths. MACs are too, but for products of two activations (attention), which have no
    weight and are not counted, and for positions that are channels themselves (a mixer), which count as they are now.
    """

    groups: tuple[ChannelGroup, ...]
    tensors: tuple[WeightShape, ...]

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """Groups whose channels can go."""
        return tuple(group for group in self.groups if group.frozen_by is None)

    def widths(self, changed: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return the number of channels of each group, as they are or with some changed."""
        return {group.name: group.channels for group in self.groups} | dict(changed or {})

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Return the number of trainable numbers at these widths; groups not named keep all."""
        complete = self.widths(widths)
        return sum(tensor.numbers(complete) for tensor in self.tensors)

    def macs(self, widths: Mapping[str, int]) -> int:
        """Return the multiply-accumulates for one sample at these widths; groups not named keep all."""
        complete = self.widths(widths)
        return sum(tensor.numbers(complete) * tensor.macs_per_weight for tensor in self.tensors)

"""``GroupTable``: a network's channels and tensors, as the search needs them to decide widths without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgeopt.records.base import Record


class ChannelGroup(Record, frozen=True, kw_only=True):
    """Channels that live on the same dimensions of the same tensors."""

    name: str
    channels: int
    importance: tuple[float, ...]
    """One score per channel, in the order of the channels; empty for a frozen group."""
    frozen_by: str | None
    """The reason why all of its channels stay; None if they can be removed."""
    unit: int = 1
    """Neighbouring indices that a channel has in multiplied weights, such as the depth of a head or the channels of a
    convolution's group."""
    least: int = 1
    """Channels that have to be left, as many as an operator picks among them."""
    in_convolution: bool = False
    """Whether a convolution's weight has them."""


class Dimension(Record, frozen=True, kw_only=True):
    """The size of one dimension of a tensor: a fixed part, plus some indices for each channel of some groups."""

    fixed: int
    per_channel: dict[str, int]

    def size(self, widths: Mapping[str, int]) -> int:
        """Return its size at these numbers of channels per group."""
        return self.fixed + sum(count * widths[group] for group, count in self.per_channel.items())


class WeightShape(Record, frozen=True, kw_only=True):
    """One trainable tensor."""

    name: str
    dims: tuple[Dimension, ...]
    macs_per_weight: float
    """Multiplications by each of its numbers for one sample (output positions); 0 for biases and norms."""
    values_per_weight: int
    """Values of one sample that each number of a batch norm's weight scales; 0 for all other tensors."""
    output_dim: int | None = None
    """The dimension of its layer's output channels; None if that is not known."""

    def numbers(self, widths: Mapping[str, int]) -> int:
        """Return how many numbers it has at these widths."""
        return math.prod(dimension.size(widths) for dimension in self.dims)


class Branch(Record, frozen=True, kw_only=True):
    """A part of the network that is added to what goes around it, and can be left out whole.

    It is left out if all of its groups keep no channel.
    """

    name: str
    groups: tuple[str, ...]
    """Whose channels are only in it, and can go."""
    frozen_groups: tuple[str, ...] = ()
    """Whose channels are only in it, and cannot go but with it."""
    tensors: tuple[str, ...]
    """That go with it."""
    loss: float
    """By how much the loss rises without it, measured and not trained."""
    half_loss: float
    """By how much the loss rises if its groups keep the more important half of their channels."""


class GroupTable(Record, frozen=True, kw_only=True):
    """All groups and all trainable tensors of a network.

    Parameters are exact for any widths. So are MACs, with exceptions: products of two activations (attention) have no
    weight and are not counted, nor are weights that are computed (weight norm) and those of recurrent layers; positions
    that are channels themselves (a mixer) count with their current number.
    """

    groups: tuple[ChannelGroup, ...]
    tensors: tuple[WeightShape, ...]
    branches: tuple[Branch, ...] = ()
    """No group is in two of them."""

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """Groups whose channels can be removed."""
        return tuple(group for group in self.groups if group.frozen_by is None)

    def widths(self, changed: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return the number of channels of each group, with some changed if given."""
        return {group.name: group.channels for group in self.groups} | dict(changed or {})

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Return the number of trainable numbers at these widths; groups not named keep all."""
        complete = self.widths(widths)
        return sum(tensor.numbers(complete) for tensor in self._tensors_left(complete))

    def macs(self, widths: Mapping[str, int]) -> int:
        """Return the multiply-accumulates for one sample at these widths; groups not named keep all."""
        complete = self.widths(widths)
        return round(sum(tensor.numbers(complete) * tensor.macs_per_weight for tensor in self._tensors_left(complete)))

    def left_out(self, widths: Mapping[str, int]) -> tuple[Branch, ...]:
        """Return the branches that are left out at these widths."""
        return tuple(branch for branch in self.branches if widths.get(branch.groups[0]) == 0)

    def _tensors_left(self, widths: Mapping[str, int]) -> list[WeightShape]:
        gone = {name for branch in self.left_out(widths) for name in branch.tensors}
        return [tensor for tensor in self.tensors if tensor.name not in gone] if gone else list(self.tensors)

"""``prune``: a network and the channels to keep go in, a smaller network comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups


def prune(network: Network, groups: Groups, keep: Mapping[str, Sequence[int]]) -> Network:
    """Remove all channels that are not kept; the given network is not changed.

    Args:
        network: The network, original or already pruned.
        groups: The result of ``analyse``.
        keep: Group name to the channels to keep; groups not named keep all.

    Raises:
        InputError: a group does not exist or is frozen, or no channel of it is kept.
        StepError: nothing would be left of a tensor.
    """
    return network.cut(groups.kept(keep), groups.marks)

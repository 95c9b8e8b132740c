"""``prune``: the smaller network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups


def prune(network: Network, groups: Groups, keep: Mapping[str, Sequence[int]]) -> Network:
    """Remove all channels that are not kept; the network given is left as it is.

    Args:
        network: The network, original or already pruned.
        groups: What ``analyse`` said of it.
        keep: Group name to the channels kept; groups not named keep all.

    Raises:
        InputError: a group that does not exist or is frozen, or no channel kept.
        StepError: nothing would be left of a tensor.
    """
    return network.sliced(groups.kept(keep), groups.marks)

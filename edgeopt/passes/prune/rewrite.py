"""``prune``: a network and the channels to keep go in, a smaller network comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups
from edgeopt.passes.prune.depth import split_zeros


def prune(network: Network, groups: Groups, keep: Mapping[str, Sequence[int]]) -> Network:
    """Remove all channels that are not kept; the given network is not changed.

    Args:
        network: The network, original or already pruned.
        groups: The result of ``analyse``.
        keep: Group name to the channels to keep; groups not named keep all. If all groups of a branch keep none, the
            branch is left out.

    Raises:
        InputError: a group does not exist or is frozen, or no channel of it is kept and its branch stays.
        StepError: nothing would be left of a tensor.
    """
    kept, branches = split_zeros(network, groups, keep)
    return network.cut(groups.kept(kept), groups.marks, [(branch.sum, branch.operand) for branch in branches])

"""Groups of channels: a ``Network`` goes in, the channels that go together come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from edgeopt.errors import InputError, did_you_mean
from edgeopt.passes.network import Network
from edgeopt.passes.prune.couplings import Heads, resolve_couplings
from edgeopt.passes.prune.interpret import Marks, collect_marked
from edgeopt.passes.prune.labels import KERNEL, NO_RULE, Integers, Reason, Slot


@dataclass(frozen=True)
class Group:
    """Channels in the same dimensions of the same tensors, so that all of them have the same shape.

    Example: the 32 channels of the first convolution of a residual block are rows of its weight, entries of its batch
    norm and columns of the second convolution: five or more slots, each of shape (32, 1).
    """

    name: str
    channels: int
    slots: Mapping[Slot, Integers]
    """(tensor, dimension) to the indices of each channel there, of shape (channels, indices per channel)."""
    frozen_by: Reason | None
    """The reason why they must stay; None if they can go."""
    least: int = 1
    """Channels that have to be left: more than one if an operator picks as many."""


@dataclass(frozen=True)
class Groups:
    """All groups of a network by name, both free and frozen ones."""

    groups: Mapping[str, Group]
    marks: Marks

    @property
    def free(self) -> dict[str, Group]:
        """Groups whose channels can go."""
        return {name: group for name, group in self.groups.items() if group.frozen_by is None}

    @property
    def without_rule(self) -> tuple[str, ...]:
        """Operators that froze channels because they have no rule."""
        reasons = [group.frozen_by for group in self.groups.values() if group.frozen_by is not None]
        return tuple(sorted({reason.operator for reason in reasons if reason.why == NO_RULE}))

    def kept(self, keep: Mapping[str, Sequence[int]]) -> dict[Slot, Integers]:
        """Turn the channels to keep of some groups into the indices to keep of tensors.

        Raises:
            InputError: a group or a channel does not exist, a group is frozen, or no channel of a group is kept.
        """
        gone: dict[Slot, list[Integers]] = {}
        for name, channels in keep.items():
            group = self.groups.get(name)
            if group is None:
                raise InputError(f"The network has no group '{name}'{did_you_mean(name, self.groups)}.")
            chosen = np.unique(np.asarray(channels, dtype=np.int64))
            if 0 < len(chosen) < group.least:
                raise InputError(f"Group '{name}' keeps at least {group.least} channels: as many of them are picked.")
            if len(chosen) == 0 or chosen[0] < 0 or chosen[-1] >= group.channels:
                raise InputError(f"Group '{name}' has channels 0 to {group.channels - 1}; keep at least one of them.")
            if len(chosen) == group.channels:
                continue
            if group.frozen_by is not None:
                raise InputError(f"Group '{name}' cannot be pruned: {group.frozen_by}.")
            for slot, indices in group.slots.items():
                gone.setdefault(slot, []).append(np.delete(indices, chosen, axis=0).reshape(-1))
        sizes = self.marks.labels.slots
        return {slot: np.setdiff1d(np.arange(len(sizes[slot])), np.concatenate(gone[slot])) for slot in gone}

    def alive(self, keep: Mapping[str, Sequence[int]]) -> Tensor:
        """Return, for each label, whether it is left."""
        return self.marks.labels.alive(self.kept(keep))


def analyse(network: Network, heads: Heads = "most") -> Groups:
    """Find the channels of a network that go together, and those that cannot go and why.

    Args:
        network: The network.
        heads: How attention shrinks: by whole heads, by the same depth of all heads, or by what gives more channels.
    """
    marks = network.mark()
    classes, reasons = resolve_couplings(marks.labels, heads)
    slots = list(marks.labels.slots.items())
    members: dict[int, dict[Slot, list[int]]] = {}
    for slot, owned in slots:
        for index, channel in enumerate(classes[owned.start : owned.stop].tolist()):
            members.setdefault(channel, {}).setdefault(slot, []).append(index)
    alike: dict[tuple[Reason | None, tuple[tuple[Slot, int], ...]], list[int]] = {}
    for channel, owned_slots in members.items():
        reason = reasons[channel]
        if reason is None or reason.why != KERNEL:
            counts = tuple((slot, len(indices)) for slot, indices in owned_slots.items())
            alike.setdefault((reason, counts), []).append(channel)
    free = _part_channels(marks, classes, [channels for (reason, _), channels in alike.items() if reason is None])
    frozen = [channels for (reason, _), channels in alike.items() if reason is not None]
    in_branches = {name for branch in network.branches() for name in branch.tensors}
    order = {channel: position for position, channel in enumerate(members)}
    groups: dict[str, Group] = {}
    for channels in sorted([*free, *frozen], key=lambda channels: order[channels[0]]):
        owned_slots = members[channels[0]]
        stacked = {slot: np.array([members[channel][slot] for channel in channels]) for slot in owned_slots}
        name = _make_unique(_slot_title(_lasting_slot(owned_slots, in_branches)), groups)
        groups[name] = Group(
            name, len(channels), stacked, reasons[channels[0]], _least_channels(marks, classes, channels)
        )
    return Groups(groups, marks)


def _part_channels(marks: Marks, classes: Integers, groups: list[list[int]]) -> list[list[int]]:
    """Part groups until every tensor of the graph holds all channels of some group, or a value that always stays.

    Each group keeps at least one channel, so no cut leaves a tensor empty: a slice of a group becomes a group.

    Args:
        marks: The labels of every node.
        classes: The class of each label.
        groups: The classes of the free channels of each group.
    """
    group_of = {channel: number for number, channels in enumerate(groups) for channel in channels}
    seen: set[bytes] = set()
    for value in collect_marked(list(marks.values.values())):
        for layer in value.layers:
            held = np.unique(classes[layer.numpy()])
            if not len(held) or held.tobytes() in seen:
                continue
            seen.add(held.tobytes())
            met = Counter(group_of.get(channel, -1) for channel in held.tolist())
            if -1 in met or any(count == len(groups[number]) for number, count in met.items()):
                continue
            number = max(met, key=lambda number: met[number])
            inside = [channel for channel in groups[number] if channel in set(held.tolist())]
            groups[number] = [channel for channel in groups[number] if channel not in set(inside)]
            groups.append(inside)
            group_of |= dict.fromkeys(inside, len(groups) - 1)
    return groups


def _least_channels(marks: Marks, classes: Integers, channels: Sequence[int]) -> int:
    """Return how many of these channels have to be left, because an operator picks as many of them."""
    held = set(channels)
    picked = [count for line, count in marks.labels.picked if held & set(classes[line.numpy()].tolist())]
    return min(len(channels), max(picked, default=1))


def _lasting_slot(slots: Iterable[Slot], in_branches: set[str]) -> Slot:
    """Return the first slot that stays if branches are left out, so that the group keeps its name; or the first one."""
    slots = list(slots)
    return next((slot for slot in slots if slot[0] not in in_branches), slots[0])


def _slot_title(slot: Slot) -> str:
    """Name a group after a slot: ``conv1`` for rows of ``conv1.weight``, ``conv1:1`` for its columns."""
    name, dim = slot
    return name.removesuffix(".weight") + (f":{dim}" if dim else "")


def _make_unique(title: str, taken: Mapping[str, Group]) -> str:
    if title not in taken:
        return title
    return next(name for number in range(2, len(taken) + 3) if (name := f"{title}#{number}") not in taken)

"""From globs over names to the least width of each group of channels.

In: ``WidthRules`` and the names of a network's tensors. Out: the least widths that ``edgeopt.planning.widths`` keeps,
or what is wrong with a glob.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from fnmatch import fnmatchcase

from edgeopt.errors import ConfigError
from edgeopt.records.groups import GroupTable, WeightShape
from edgeopt.records.width_rules import WidthRules

NO_EFFECT_NOTE = "has no effect: its parameters are not in the network that is pruned"
"""The end of the note on a glob whose parameters the model has but does not use, or that were merged into others."""
_NEAREST_NAMES = 3


def module_names(name: str) -> list[str]:
    """Return a tensor's name, and the names of the modules that it is in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def matches(glob: str, name: str) -> bool:
    """Tell whether a glob matches a tensor's name or that of a module which it is in."""
    return any(fnmatchcase(one, glob) for one in module_names(name))


def check_rules(
    rules: WidthRules, names: Iterable[str], source: str, kind: str = "parameter or module of the model"
) -> None:
    """Refuse a glob that matches nothing, and a width below 1.

    Args:
        rules: As the user wrote them.
        names: Of the model's parameters.
        source: Of the rules, for messages.
        kind: What the names are of, for messages.

    Raises:
        ConfigError: names the glob and the nearest names.
    """
    names = list(names)
    known = dict.fromkeys(one for name in names for one in module_names(name))
    for glob in rules.globs:
        if not any(matches(glob, name) for name in names):
            close = difflib.get_close_matches(glob.strip("*."), known, n=_NEAREST_NAMES, cutoff=0.0)
            raise ConfigError(
                f"{source}: '{glob}' matches no {kind}. The nearest names are "
                f"{', '.join(close)}; '*' stands for any text, dots included."
            )
    for glob, width in rules.min_widths.items():
        if width < 1:
            raise ConfigError(f"{source}: the least width of '{glob}' is {width}; it has to be 1 or more.")


def least_widths(table: GroupTable, rules: WidthRules) -> dict[str, int]:
    """Return the least number of channels of each group that a rule is about, or of which more than one has to stay.

    If the output channels of a layer are in several groups, each keeps the same share of its channels.
    """
    free = {group.name: group.channels for group in table.free}
    least: dict[str, int] = {group.name: group.least for group in table.free if group.least > 1}
    for tensor in table.tensors:
        if any(matches(glob, tensor.name) for glob in rules.keep):
            least |= {name: free[name] for dim in tensor.dims for name in dim.per_channel if name in free}
        wanted = max((width for glob, width in rules.min_widths.items() if matches(glob, tensor.name)), default=0)
        for name, width in _shares(tensor, wanted, table).items():
            if name in free:
                least[name] = max(width, least.get(name, 1))
    return least


def protected_branches(table: GroupTable, rules: WidthRules) -> set[str]:
    """Return the names of branches with a tensor that a rule is about: they are not left out."""
    return {
        branch.name
        for branch in table.branches
        if any(matches(glob, name) for glob in rules.globs for name in branch.tensors)
    }


def _shares(tensor: WeightShape, width: int, table: GroupTable) -> dict[str, int]:
    """Return how many channels of each group leave a tensor ``width`` output channels, or all that it has."""
    if not width or not tensor.dims:
        return {}
    full, output = table.widths(), tensor.dims[tensor.output_dim or 0]
    if tensor.output_dim is None:  # such as the stacked gates of a recurrent layer: each group's channels count
        return {name: min(full[name], width) for name in output.per_channel}
    ratio = min(1.0, width / output.size(full))
    return {name: math.ceil(ratio * full[name]) for name in output.per_channel}


def notes_without_effect(table: GroupTable, rules: WidthRules) -> tuple[str, ...]:
    """Return a note on each glob that matches no tensor of the network that is pruned, such as a merged branch."""
    names = [tensor.name for tensor in table.tensors]
    unused = [glob for glob in rules.globs if not any(matches(glob, name) for name in names)]
    return tuple(f"'{glob}' {NO_EFFECT_NOTE}" for glob in unused)

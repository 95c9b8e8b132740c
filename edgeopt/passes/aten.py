"""``aten``: PyTorch's own operators, which make up a traced network, and their arguments."""

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def argument(node: fx.Node, name: str) -> Any:
    """Return an operator's argument by its name in the schema, or its default."""
    for index, one in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if one.name == name:
            return node.args[index] if index < len(node.args) else node.kwargs.get(name, one.default_value)
    raise KeyError(name)


def writes_into(node: fx.Node, source: fx.Node) -> bool:
    """Tell whether an operator writes into one of its arguments."""
    arguments = node.target._schema.arguments if hasattr(node.target, "_schema") else ()
    written = [one.name for one in arguments if one.alias_info is not None and one.alias_info.is_write]
    return any(argument(node, name) is source for name in written)


def plain_form(packet: Any) -> Any:
    """Return the operator that computes the same without writing in place and without a copy of its own.

    ``add`` for ``add_``, ``permute`` for ``permute_copy``; any other operator is its own plain form.
    """
    name = packet.__name__
    plain = name.removesuffix("_copy") if name.endswith("_copy") else name.removesuffix("_")
    return getattr(aten, plain, packet) if plain != name and not name.startswith("__") else packet

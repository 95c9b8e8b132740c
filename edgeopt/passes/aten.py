"""``aten``: PyTorch's own operators, which make up a traced network, and their arguments."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def argument(node: fx.Node, name: str) -> Any:
    """Return an operator's argument by its name in the schema, or its default."""
    for index, one in enumerate(_schema_arguments(node)):
        if one.name == name:
            return node.args[index] if index < len(node.args) else node.kwargs.get(name, one.default_value)
    raise KeyError(name)


def argument_names(node: fx.Node) -> list[str]:
    """Return the names of an operator's arguments, in the order of its schema."""
    return [one.name for one in _schema_arguments(node)]


def _schema_arguments(node: fx.Node) -> Sequence[Any]:
    """Return the arguments of the schema; none if that is not an operator."""
    schema = getattr(node.target, "_schema", None)
    return () if schema is None else schema.arguments


def read_attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    """Return what a ``get_attr`` node reads from its module: a parameter, a buffer, a constant or a region."""
    return operator.attrgetter(str(node.target))(module)


def writes_into(node: fx.Node, source: fx.Node) -> bool:
    """Tell whether an operator writes into one of its arguments."""
    written = [one.name for one in _schema_arguments(node) if one.alias_info is not None and one.alias_info.is_write]
    return any(argument(node, name) is source for name in written)


def plain_form(packet: Any) -> Any:
    """Return the operator that computes the same without writing in place and without a copy of its own.

    ``add`` for ``add_``, ``permute`` for ``permute_copy``; any other operator is its own plain form.
    """
    name = packet.__name__
    plain = name.removesuffix("_copy") if name.endswith("_copy") else name.removesuffix("_")
    return getattr(aten, plain, packet) if plain != name and not name.startswith("__") else packet

"""``Call``: one node of the graph, as its operator's rule sees it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from edgeopt.passes.prune.labels import Labels, Marked

Layers = tuple[Tensor, ...]
Rule = Callable[[Labels, "Call"], "Layers | list[Layers]"]
"""Computes the layers of an operator's result, or a list of them for an operator with several results."""


@dataclass(frozen=True)
class Call:
    """An operator's arguments by schema name, with ``Marked`` in place of tensors, and the shape of its result."""

    target: Any
    arguments: dict[str, Any]
    shape: Any
    literal: frozenset[int] = frozenset()
    """Positions in the argument ``size`` (or ``repeats``) with a literal number in the graph."""
    computed: frozenset[str] = frozenset()
    """Names of the arguments that hold nodes of the graph: tensors, and numbers such as the length of an input."""

    unused: frozenset[int] = frozenset()
    """Positions of the results, of an operator with several, that nothing in the graph reads."""

    @classmethod
    def of(cls, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any) -> Call:
        """Name the arguments of a node; missing ones get their defaults."""
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return cls(node.target, dict(enumerate(args)) | kwargs, shape)  # type: ignore[arg-type]
        names = [argument.name for argument in schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        defaults = {argument.name: argument.default_value for argument in schema.arguments}
        written = dict(zip(names, node.args, strict=False)) | node.kwargs
        sizes = _as_list(written.get("size", written.get("repeats")))
        literal = [position for position, size in enumerate(sizes) if isinstance(size, int)]
        computed = [
            name
            for name, value in written.items()
            if any(isinstance(item, fx.Node) for item in (_as_list(value) or [value]))
        ]
        return cls(node.target, defaults | given, shape, frozenset(literal), frozenset(computed), unused_results(node))

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or ``default`` if this overload does not have it."""
        return self.arguments.get(name, default)

    @property
    def operands(self) -> list[Marked]:
        """Return all tensors among the arguments, in order."""
        operands: list[Marked] = []
        for value in self.arguments.values():
            items = value if isinstance(value, (tuple, list)) else [value]
            operands.extend(item for item in items if isinstance(item, Marked))
        return operands

    @property
    def input(self) -> Marked:
        """Return the first tensor."""
        return self.operands[0]

    def with_input(self, layers: Layers) -> Call:
        """Return the same call with other layers for its first tensor, which must be its first argument."""
        first = next(iter(self.arguments))
        return replace(self, arguments={**self.arguments, first: Marked(self.input.shape, layers)})

    def dim(self, name: str = "dim") -> int:
        """Return a dimension of the input as a number that is not negative."""
        return int(self[name]) % max(len(self.input.shape), 1)

    def freeze_others(self, labels: Labels) -> None:
        """Freeze all tensors but the first, for rules that handle one tensor."""
        for other in self.operands[1:]:
            labels.freeze(other.layers)


def unused_results(node: fx.Node) -> frozenset[int]:
    """Return the positions of the results, of an operator with several, that nothing in the graph reads."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or len(schema.returns) < 2 or any(user.target is not operator.getitem for user in node.users):
        return frozenset()
    read: set[Any] = {user.args[1] for user in node.users}
    return frozenset(range(len(schema.returns))) - read


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()

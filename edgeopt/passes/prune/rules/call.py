"""``Call``: one operator at one place in the graph, as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from edgeopt.passes.prune.labels import Labels, Marked

Layers = tuple[Tensor, ...]
Rule = Callable[[Labels, "Call"], "Layers | list[Layers]"]
"""What an operator does to labels: layers of its result, or a list of them for an operator with several results."""


@dataclass(frozen=True)
class Call:
    """An operator's arguments by their names in its schema, ``Marked`` in place of tensors, and its result's shape."""

    target: Any
    arguments: dict[str, Any]
    shape: Any
    literal: frozenset[int] = frozenset()
    """Places in its argument ``size`` that hold a number in the graph itself."""

    @classmethod
    def of(cls, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any) -> Call:
        """Name the arguments of a node; those not given get their defaults."""
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return cls(node.target, dict(enumerate(args)) | kwargs, shape)  # type: ignore[arg-type]
        names = [argument.name for argument in schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        defaults = {argument.name: argument.default_value for argument in schema.arguments}
        sizes = (dict(zip(names, node.args, strict=False)) | node.kwargs).get("size")
        literal = [place for place, size in enumerate(_listed(sizes)) if isinstance(size, int)]
        return cls(node.target, defaults | given, shape, frozenset(literal))

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or ``default`` where this overload has none of that name."""
        return self.arguments.get(name, default)

    @property
    def operands(self) -> list[Marked]:
        """All tensors among the arguments, in order."""
        found: list[Marked] = []
        for value in self.arguments.values():
            items = value if isinstance(value, (tuple, list)) else [value]
            found.extend(item for item in items if isinstance(item, Marked))
        return found

    @property
    def input(self) -> Marked:
        """The first tensor."""
        return self.operands[0]

    def with_input(self, layers: Layers) -> Call:
        """Return the same call with other layers of its first tensor, which is its first argument."""
        first = next(iter(self.arguments))
        return replace(self, arguments={**self.arguments, first: Marked(self.input.shape, layers)})

    def dim(self, name: str = "dim") -> int:
        """Return a dimension of the input as a number from 0 on."""
        return int(self[name]) % max(len(self.input.shape), 1)

    def freeze_others(self, labels: Labels) -> None:
        """Freeze all tensors but the first: for rules that know of one tensor."""
        for other in self.operands[1:]:
            labels.freeze(other.layers)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()

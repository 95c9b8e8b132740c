"""``Node``: one node of an ONNX graph with its attributes as Python values; ``Operator``: how its kind is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import onnx

from edgeopt.errors import StepError

STAGE = "convert"
OWN_DOMAIN = "edgeopt"
"""Of operators that the conversion writes in place of ONNX's."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node."""

    operator: str
    inputs: tuple[str, ...]
    """An empty name is an input that is not given."""
    outputs: tuple[str, ...]
    domain: str = ""
    name: str = ""
    opset: int = 0
    """Of the node's domain."""
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The node in messages."""
        domain = f"{self.domain}." if self.domain not in ("", "ai.onnx") else ""
        named = f"'{self.name}'" if self.name else f"that computes '{self.outputs[0]}'"
        return f"operator {domain}{self.operator} of node {named}"

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    def wants(self, position: int) -> bool:
        """Tell whether an output is used."""
        return len(self.outputs) > position and bool(self.outputs[position])

    def refuse(self, reason: str) -> StepError:
        """Return the error that this node cannot be converted; ``reason`` follows its title."""
        return StepError(STAGE, f"{self.title} {reason}")


class Operator(NamedTuple):
    """How an operator is computed."""

    compute: Callable[..., Any]
    """``(node, *inputs)`` to a tensor, or a tuple of them; inputs that are not given are None."""
    numbers: tuple[int, ...] = ()
    """Positions of inputs that have to be known without running the graph: shapes, axes."""
    either: tuple[int, ...] = ()
    """Positions of inputs that are taken as numbers if they are known."""
    weights: tuple[int, ...] = ()
    """Positions of inputs whose constants a training changes."""


def read_node(proto: onnx.NodeProto, opsets: dict[str, int]) -> Node:
    """Return a node with its attributes as Python values."""
    attributes = {attribute.name: _read_attribute(attribute) for attribute in proto.attribute}
    return Node(
        operator=proto.op_type,
        domain="" if proto.domain == "ai.onnx" else proto.domain,
        name=proto.name,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        opset=opsets.get(proto.domain, opsets.get("ai.onnx" if not proto.domain else "", 1)),
        attributes=attributes,
    )


def _read_attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in value]
    return list(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value

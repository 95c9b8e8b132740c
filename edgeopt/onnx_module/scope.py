"""``Scope``: the values by name while nodes are computed, each given to an operator as it takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeopt.onnx_module.node import Node, Operator
from edgeopt.onnx_module.shapes import NUMBER_OPERATORS, count_elements, read_shape
from edgeopt.onnx_module.values import MAX_NUMBERS, Numbers, Value, as_numbers, as_tensor

_READ_SIZES: dict[str, Callable[..., Numbers]] = {"Shape": read_shape, "Size": count_elements}
_MAX_SHAPE_RANK = 1
"""Of numbers that take part in arithmetic on shapes."""
_MAX_MOVED_RANK = 2
"""Of numbers that are only moved: paddings are written as rows of two, before and after."""
_MOVED = frozenset({"Concat", "Reshape", "Transpose", "Slice", "Split", "Cast", "Squeeze", "Unsqueeze", "Gather"})
_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)


def _is_known(node: Node, numbers: Numbers) -> bool:
    """Tell whether a node is computed on numbers of that shape; on more they are tensors, such as masks."""
    most = _MAX_MOVED_RANK if node.operator in _MOVED else _MAX_SHAPE_RANK
    return numbers.ndim <= most and numbers.size <= MAX_NUMBERS


class Step(NamedTuple):
    """A node and how it is computed."""

    node: Node
    operator: Operator


class Scope:
    """Values by name.

    Args:
        values: Computed so far, such as the inputs.
        constant: Returns a constant, or None if the name is not one.
        numbers: Constants that operators take as numbers.
    """

    def __init__(
        self, values: dict[str, Value], constant: Callable[[str], Tensor | None], numbers: Mapping[str, Numbers]
    ) -> None:
        self.values = values
        self.constant = constant
        self.numbers = numbers
        self.device = next((value.device for value in values.values() if isinstance(value, Tensor)), None)

    def compute(self, step: Step) -> None:
        """Compute a node from the values so far, and keep its outputs."""
        node = step.node
        try:
            found = self._results(step)
        except _FAILURES as error:
            error.add_note(node.title)
            raise
        for name, value in zip(node.outputs, found if isinstance(found, tuple | list) else (found,), strict=False):
            self.values[name] = value

    def _results(self, step: Step) -> Any:
        node, operator = step
        if node.operator in _READ_SIZES and not node.domain:
            return _READ_SIZES[node.operator](node, self.any(node.inputs[0]))
        arrays = self._all_numbers(node)
        found = NotImplemented if arrays is None else NUMBER_OPERATORS[node.operator](node, *arrays)
        if found is not NotImplemented:
            return found
        taken = [self._take(node, operator, place, name) for place, name in enumerate(node.inputs)]
        return operator.compute(node, *taken)

    def _all_numbers(self, node: Node) -> list[Numbers | None] | None:
        """Return the inputs of a node as numbers, if all of them are and it can be computed on these."""
        if node.domain or node.operator not in NUMBER_OPERATORS:
            return None
        computed = [self.values.get(name) for name in node.inputs if name]
        if all(value is None for value in computed) or any(isinstance(value, Tensor) for value in computed):
            return None
        arrays: list[Numbers | None] = []
        for name in node.inputs:
            value = self.values.get(name) if name else None
            array = value if value is not None else self.numbers.get(name)
            if name and (array is None or isinstance(array, Tensor) or not _is_known(node, array)):
                return None
            arrays.append(array)  # type: ignore[arg-type]
        return arrays

    def any(self, name: str) -> Value:
        """Return a value in the form that it has."""
        value = self.values.get(name)
        value = self.constant(name) if value is None else value
        if value is None:
            value = self.numbers[name]
        return value

    def tensor(self, name: str) -> Tensor:
        """Return a value as a tensor."""
        return as_tensor(self.any(name), self.device)

    def _take(self, node: Node, operator: Operator, place: int, name: str) -> Value | None:
        """Return an input as its operator takes it; None if it is not given."""
        if not name:
            return None
        value = self.values.get(name)
        if place in operator.numbers:
            array = self.numbers.get(name) if value is None else value
            if array is None or isinstance(array, Tensor):
                raise node.refuse(f"takes '{name}' from values that are computed from data: sizes have to be known.")
            return array
        if place in operator.either:
            array = self.numbers.get(name) if value is None else value
            if array is not None and (value is not None or place not in operator.weights or array.size == 1):
                return array
        return self.tensor(name)


def numbers_of(constant: Tensor) -> Numbers | None:
    """Return a small constant as numbers, of a larger one None."""
    return as_numbers(constant) if constant.numel() <= MAX_NUMBERS else None


def compute_constants(step: Step, constants: Mapping[str, Tensor], numbers: Mapping[str, Numbers]) -> dict[str, Tensor]:
    """Compute a node whose inputs are all constants.

    Raises:
        StepError: it cannot be computed.
    """
    scope = Scope({}, constants.get, _Numbers(constants, numbers))
    try:
        with torch.no_grad():
            scope.compute(step)
    except _FAILURES as error:
        raise step.node.refuse(f"cannot be computed from its constants: {str(error).splitlines()[0]}") from error
    return {name: as_tensor(value).clone() for name, value in scope.values.items() if name and value is not None}


class _Numbers(dict[str, Numbers]):
    """Numbers of any constant, also of a large one."""

    def __init__(self, constants: Mapping[str, Tensor], numbers: Mapping[str, Numbers]) -> None:
        super().__init__(numbers)
        self._constants = constants

    def get(self, name: str, default: Any = None) -> Any:
        """Return the numbers of a constant."""
        if name in self or name not in self._constants:
            return super().get(name, default)
        return as_numbers(self._constants[name])

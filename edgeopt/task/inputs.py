"""The inputs of a model, however a task nests them, bound to the parameters of ``forward``: a flat tuple of tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.errors import TaskError
from edgeopt.task.nesting import Nesting, flatten
from edgeopt.task.values import describe_value

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def forward_parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of a model's ``forward``."""
    return list(inspect.signature(model.forward).parameters.values())


class InputLayout:
    """How a model is called with the inputs of a task.

    Inputs are bound to the parameters of ``forward``, in the order of its signature: a tensor is the first parameter, a
    tuple or a list fills parameters from the left, and a dict names them. So a batch may name inputs that the example
    gives by position.

    Args:
        model: Its ``forward`` is never called here.
        example: One batch of inputs, as ``example_inputs()`` returns them.
        spec: Names the task in errors.
    """

    def __init__(self, model: nn.Module, example: Any, spec: str) -> None:
        self.spec = spec
        self._is_single = isinstance(example, Tensor | np.ndarray)
        self._is_named = isinstance(example, Mapping)
        self.parameters = forward_parameters(model)
        values = self._bind(example, "example_inputs()")
        self.bound = tuple(values)
        """Names of the parameters that get a value, in order; an index for one of ``*args``."""
        leaves, self.nesting = self._flatten(values, "example_inputs()")
        self.example = tuple(leaves)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each tensor: of its parameter, with keys and positions if the parameter nests several."""
        keys = [str(name) for name in self.bound]
        return tuple(
            ".".join([keys[int(first)], *rest]) for first, *rest in (name.split(".") for name in self.nesting.names)
        )

    def flatten(self, inputs: Any, source: str) -> tuple[Tensor, ...]:
        """Return the tensors of a batch in the order of the example's.

        Raises:
            TaskError: the batch has other inputs than the example, or in another nesting.
        """
        values = self._bind(inputs, source)
        if tuple(values) != self.bound:
            raise TaskError(
                f"{self.spec}: {source} gives the inputs {_listed(values)}, but example_inputs() gives "
                f"{_listed(self.bound)}. Both have to fill the same parameters of the model's forward()."
            )
        leaves, nesting = self._flatten(values, source)
        if nesting.names == self.nesting.names and nesting.constants != self.nesting.constants:
            raise TaskError(
                f"{self.spec}: {source} gives {nesting.constants!r:.80} among its inputs, but example_inputs() "
                f"gives {self.nesting.constants!r:.80}. Numbers, strings and None become part of the graph: give "
                "what differs from batch to batch as a tensor."
            )
        if nesting.names != self.nesting.names:
            raise TaskError(
                f"{self.spec}: {source} gives inputs of {describe_value(inputs)}, nested otherwise than those of "
                f"example_inputs(), {describe_value(self.nesting.nest(self.example))}."
            )
        return leaves

    def nest(self, leaves: Sequence[Tensor]) -> Any:
        """Return inputs in the form of the example: a tensor, a tuple, or a dict by parameters of ``forward``."""
        values = self.nesting.nest(leaves)
        if self._is_named:
            return dict(zip(self.bound, values, strict=True))
        return values[0] if self._is_single else values

    def flatten_call(self, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Return the tensors of the arguments with which user code calls the model."""
        if not named:
            return self.flatten(args[0] if len(args) == 1 else tuple(args), "the call of the model")
        positional = self._bind(tuple(args), "the call of the model") if args else {}
        return self.flatten({**positional, **named}, "the call of the model")

    def call(self, model: Callable[..., Any], leaves: Sequence[Tensor]) -> Any:
        """Call a model as the task would, with other tensors."""
        values = dict(zip(self.bound, self.nesting.nest(leaves), strict=True))
        positional: list[Any] = []
        for parameter in self.parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional += [values.pop(key) for key in self.bound if isinstance(key, int)]
            elif parameter.kind in _POSITIONAL and parameter.name in values:
                positional.append(values.pop(parameter.name))
            else:
                break
        return model(*positional, **{str(key): value for key, value in values.items()})

    def _flatten(self, values: dict[str | int, Any], source: str) -> tuple[tuple[Tensor, ...], Nesting]:
        try:
            leaves, nesting = flatten(tuple(values.values()))
        except TaskError as error:
            raise TaskError(f"{self.spec}: inputs of {source}: {error}") from error
        if not leaves:
            raise TaskError(f"{self.spec}: {source} has no tensor among its inputs: {describe_value(values)}.")
        return tuple(torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves), nesting

    def _bind(self, inputs: Any, source: str) -> dict[str | int, Any]:
        """Return inputs by parameter, in the order of the signature."""
        if isinstance(inputs, Mapping):
            return self._bind_names(dict(inputs), source)
        values = [inputs] if isinstance(inputs, Tensor | np.ndarray) else inputs
        if not isinstance(values, tuple | list) or not values:
            raise TaskError(
                f"{self.spec}: {source} has to give a tensor, a tuple of inputs or a dict by parameters of forward(), "
                f"not {describe_value(inputs)}."
            )
        bound: dict[str | int, Any] = {}
        remaining = list(values)
        for parameter in self.parameters:
            if not remaining:
                break
            if parameter.kind is parameter.VAR_POSITIONAL:
                bound |= dict(enumerate(remaining))
                remaining = []
            elif parameter.kind in _POSITIONAL:
                bound[parameter.name] = remaining.pop(0)
        if remaining:
            alike = len({getattr(value, "ndim", None) for value in values}) == 1
            raise TaskError(
                f"{self.spec}: {source} gives {len(values)} inputs, {describe_value(values)}, but the model's "
                f"forward() takes {_listed([parameter.name for parameter in self.parameters])}."
                + (" If these are the samples of a batch, stack them into one tensor." if alike else "")
            )
        return bound

    def _bind_names(self, inputs: dict[str, Any], source: str) -> dict[str | int, Any]:
        named = [one.name for one in self.parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        open_ended = any(one.kind is one.VAR_KEYWORD for one in self.parameters)
        unknown = [key for key in inputs if key not in named]
        if unknown and len(inputs) == 1 and named:
            return {named[0]: inputs[unknown[0]]}  # a single input may have any name
        if unknown and len(named) == 1 and not open_ended:
            return {named[0]: inputs}  # forward() takes the whole dict
        if unknown and not open_ended:
            raise TaskError(
                f"{self.spec}: {source} gives the inputs {_listed(inputs)}, but the model's forward() takes "
                f"{_listed(named)}. Name the inputs of a dict after the parameters of forward(), or give (inputs, "
                "targets)."
            )
        ordered = [*(name for name in named if name in inputs), *unknown]
        return {name: inputs[name] for name in ordered}


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names)

"""``OnnxModule``: the nodes of a graph, computed one after the other by torch."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgeopt.onnx_module.scope import Scope, Step
from edgeopt.onnx_module.values import Numbers

_ILLEGAL = re.compile(r"[^0-9A-Za-z_.]")


class OnnxModule(nn.Module):
    """A graph as a module: the graph's inputs in order to its outputs, a tensor or a tuple of several.

    Parameters and buffers have the names of the graph's initializers, as far as they are names of attributes: what may
    not be in one becomes ``_``, and a dot leads into a module.

    Args:
        steps: The nodes in order.
        input_names: Of the graph.
        outputs: Of the graph, with their types; None for one that is not declared.
        numbers: Constants that operators take as numbers: sizes, axes, limits.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        input_names: Sequence[str],
        outputs: Mapping[str, torch.dtype | None],
        numbers: Mapping[str, Numbers],
    ) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self._numbers = dict(numbers)
        self._places: dict[str, str] = {}
        self.file_names: dict[str, frozenset[str]] = {}
        """By parameter or buffer: the names in the file that it goes by, those of its nodes too."""
        self.input_names = tuple(input_names)
        self.outputs = dict(outputs)

    def store(self, name: str, tensor: Tensor, *, is_trained: bool, file_names: frozenset[str] = frozenset()) -> None:
        """Keep a constant as a parameter or a buffer.

        Args:
            name: In the graph.
            tensor: Its values.
            is_trained: Whether a training changes it.
            file_names: Of initializers that it is made of, and of nodes that make or read it.
        """
        place = self._free_place(name)
        *folders, leaf = place.split(".")
        parent: nn.Module = self
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        if is_trained:
            parent.register_parameter(leaf, nn.Parameter(tensor.contiguous()))
        else:
            parent.register_buffer(leaf, tensor.contiguous())
        self._places[name] = place
        self.file_names[place] = file_names

    def is_stored(self, name: str) -> bool:
        """Tell whether a name of the graph is that of a constant."""
        return name in self._places

    def file_names_of(self, name: str) -> frozenset[str]:
        """Return the names in the file that a constant goes by."""
        place = self._places.get(name)
        return frozenset() if place is None else self.file_names[place]

    def share(self, name: str, other: str, file_names: frozenset[str]) -> None:
        """Let a constant be the parameter that another one is, so that a training keeps them equal.

        Args:
            name: In the graph.
            other: The stored one.
            file_names: As those of ``store``.
        """
        place = self._places[name] = self._places[other]
        self.file_names[place] |= file_names

    def _free_place(self, name: str) -> str:
        """Return a path of attributes like a name, which nothing has yet."""
        parts = [part for part in _ILLEGAL.sub("_", name.removesuffix(".transposed")).split(".") if part]
        for place in (".".join(parts), "_".join(parts)):
            if place and self._is_free(place):
                return place
        base, number = "_".join(parts) or "constant", 1
        while not self._is_free(f"{base}_{number}"):
            number += 1
        return f"{base}_{number}"

    def _is_free(self, place: str) -> bool:
        at: object = self
        *folders, leaf = place.split(".")
        for folder in folders:
            below = at._modules.get(folder) if isinstance(at, nn.Module) else None
            if below is None:
                return not hasattr(at, folder) and not hasattr(nn.Module, leaf)
            at = below
        return not hasattr(at, leaf)

    def _constant(self, name: str) -> Tensor | None:
        place = self._places.get(name)
        return None if place is None else operator.attrgetter(place)(self)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the graph's outputs."""
        scope = self._computed(inputs)
        found = [self._output(scope, name) for name in self.outputs]
        return found[0] if len(found) == 1 else tuple(found)

    def compute_values(self, inputs: Sequence[Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """Return values inside the graph by name, without gradients.

        Args:
            inputs: Of the graph, in order.
            names: Of the values.
        """
        with torch.no_grad():
            scope = self._computed(inputs)
        return {name: scope.tensor(name) for name in names}

    def _computed(self, inputs: Sequence[Tensor]) -> Scope:
        scope = Scope(dict(zip(self.input_names, inputs, strict=True)), self._constant, self._numbers)
        for step in self.steps:
            scope.compute(step)
        return scope

    def _output(self, scope: Scope, name: str) -> Tensor:
        value, dtype = scope.tensor(name), self.outputs[name]
        value = value if dtype is None or value.dtype == dtype else value.to(dtype)
        return value.clone() if name in self.input_names or name in self._places else value

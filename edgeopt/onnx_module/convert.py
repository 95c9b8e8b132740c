"""``to_module``: an ONNX graph goes in, a torch module that computes the same comes out.

Nodes whose inputs are all constants are computed once. Constants in the place of weights become parameters; the others
are buffers, or numbers in the code of the traced graph.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import onnx
import onnx.inliner
import onnx.shape_inference
import torch
from torch import Tensor

from edgeopt.errors import StepError
from edgeopt.model_files.inferred_shapes import write_inferred_shapes
from edgeopt.model_files.tensors import copy_model_proto
from edgeopt.onnx_module.constants import TYPES, name_type, read_tensor
from edgeopt.onnx_module.module import OnnxModule
from edgeopt.onnx_module.node import STAGE, Node, Operator, read_node
from edgeopt.onnx_module.operators import operator_for
from edgeopt.onnx_module.rewriting import rewrite
from edgeopt.onnx_module.scope import Step, compute_constants, numbers_of
from edgeopt.onnx_module.values import Numbers, as_numbers

_LARGEST_OPERAND = 50
"""A constant to add or multiply is not a weight if it has larger numbers: an attention mask has -100 or less."""
_SIZES = ("Shape", "Size")
_log = logging.getLogger(__name__)


def to_module(model: onnx.ModelProto) -> OnnxModule:
    """Return a module that computes what a model does, in inference mode.

    Args:
        model: With its weights in it.

    Returns:
        A module whose ``forward`` takes the graph's inputs in order and returns its outputs.

    Raises:
        StepError: names the first operator or type that has no counterpart, with its node.
    """
    return _Conversion(_without_functions(model)).finish()


def _without_functions(model: onnx.ModelProto) -> Any:
    """Replace calls of the model's own functions by their nodes, and operators that are not known by ONNX's definition.

    ONNX defines some operators (such as Attention) by others.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    before: set[str] = set()
    while (unknown := _unknown_operators(model)) - before:
        try:
            model = onnx.inliner.inline_selected_functions(
                _with_types(model), [("", name) for name in sorted(unknown)], inline_schema_functions=True
            )
        except (RuntimeError, onnx.shape_inference.InferenceError) as error:  # the operator is refused by its name
            _log.debug("ONNX cannot expand %s: %s", unknown, error)
            return model
        before |= unknown
    return model


def _unknown_operators(model: onnx.ModelProto) -> set[str]:
    """Return ONNX's own operators in a graph that have no counterpart here."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    nodes = [read_node(proto, opsets) for proto in model.graph.node]
    return {node.operator for node in nodes if not node.domain and not _is_known(node)}


def _with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the types of all values, also of initializers, which the inliner needs."""
    typed = copy_model_proto(model)
    write_inferred_shapes(typed)
    known = {value.name for value in (*typed.graph.value_info, *typed.graph.input)}
    for tensor in typed.graph.initializer:
        if tensor.name not in known:
            typed.graph.value_info.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return typed


def _is_known(node: Node) -> bool:
    return node.operator in (*_SIZES, "If") or operator_for(node) is not None


class _Conversion:
    """A graph on its way to a module: the constants so far, and the steps that are left."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.graph = model.graph
        self.constants: dict[str, Tensor] = {}
        self.numbers: dict[str, Numbers] = {}
        self.file_names: dict[str, set[str]] = {}
        """Of each constant: the initializers that it is made of, and the nodes that make and read it."""
        self.steps: list[Step] = []
        self._read_initializers(model.graph)
        for node in self._walk(model.graph.node):
            self._add(node)

    def _read_initializers(self, graph: onnx.GraphProto) -> None:
        for initializer in graph.initializer:
            tensor = read_tensor(initializer)
            if tensor is None:
                raise StepError(
                    STAGE,
                    f"initializer '{initializer.name}' has the type {name_type(initializer.data_type)}, which torch "
                    "does not compute with.",
                )
            self._keep(initializer.name, tensor)
            self.file_names[initializer.name] = {initializer.name}
        if graph.sparse_initializer:
            raise StepError(STAGE, "the graph has sparse initializers, which are not supported.")

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.constants[name] = tensor
        numbers = numbers_of(tensor)
        if numbers is not None:
            self.numbers[name] = numbers

    def _walk(self, protos: Iterable[onnx.NodeProto]) -> Iterable[Node]:
        """Yield the nodes; of an If whose condition is a constant, those of the branch that it takes."""
        for proto in protos:
            node = read_node(proto, self.opsets)
            if node.operator != "If" or node.domain:
                yield node
                continue
            condition = self.constants.get(node.inputs[0])
            if condition is None:
                raise node.refuse("decides by data, which a traced graph cannot.")
            branch = node.get("then_branch" if bool(condition.item()) else "else_branch")
            self._read_initializers(branch)
            yield from self._walk(branch.node)
            for value, name in zip(branch.output, node.outputs, strict=True):
                yield Node(operator="Identity", inputs=(value.name,), outputs=(name,), name=node.name)

    def _add(self, node: Node) -> None:
        for part in rewrite(node, self.constants):
            operator = _find_operator(part)
            step = Step(part, operator)
            if not all(name in self.constants for name in part.inputs if name):
                self.steps.append(step)
            elif not all(name in self.constants for name in part.outputs):
                sources = {one for name in part.inputs for one in self.file_names.get(name, ())} | {part.name}
                for name, tensor in compute_constants(step, self.constants, self.numbers).items():
                    self._keep(name, tensor)
                    self.file_names[name] = {*sources, name}

    def finish(self) -> OnnxModule:
        """Return the module of the nodes that the outputs need, with the constants that these use.

        A linear layer whose weight equals a table (as the last layer of a language model) gets the table as its weight.
        """
        names = self._read_inputs()
        outputs = {value.name: TYPES.get(value.type.tensor_type.elem_type) for value in self.graph.output}
        steps = _needed(self.steps, set(outputs))
        module = OnnxModule(steps, names, outputs, self._used_numbers(steps))
        used = self._used_tensors(steps, outputs)
        readers = {name: [node for node, _ in steps if name in node.inputs] for name in used}
        tables = {
            _key(self.constants[name]): name
            for name, is_trained in used.items()
            if is_trained and any(node.operator == "Gather" for node in readers[name])
        }
        for name, is_trained in sorted(used.items(), key=lambda entry: entry[0] not in tables.values()):
            others = {node.name for node in readers[name]}
            file_names = frozenset((self.file_names.get(name, set()) | others) - {""})
            is_layer = is_trained and any(node.operator == "Linear" for node in readers[name])
            table = tables.get(_key(self.constants[name]), name) if tables and is_layer else name
            if table == name:
                module.store(name, self.constants[name], is_trained=is_trained, file_names=file_names)
            else:
                module.share(name, table, file_names)
        return module.eval()

    def _read_inputs(self) -> list[str]:
        """Return the names of the graph's inputs, which are tensors of numbers."""
        inputs = [value for value in self.graph.input if value.name not in self.constants]
        for value in inputs:
            number = value.type.tensor_type.elem_type
            if number not in TYPES:
                kind = name_type(number) if value.type.HasField("tensor_type") else "not a tensor"
                raise StepError(STAGE, f"input '{value.name}' is {kind}, which torch does not compute with.")
        return [value.name for value in inputs]

    def _used_numbers(self, steps: list[Step]) -> dict[str, Numbers]:
        """Return the constants that may be taken as numbers."""
        used: dict[str, Numbers] = {}
        for node, operator in steps:
            for place, name in enumerate(node.inputs):
                if name in self.numbers:
                    used[name] = self.numbers[name]
                elif name in self.constants and place in operator.numbers:
                    used[name] = as_numbers(self.constants[name])
        return used

    def _used_tensors(self, steps: list[Step], outputs: Iterable[str]) -> dict[str, bool]:
        """Return the constants that are taken as tensors, and whether a training changes them."""
        used: dict[str, bool] = {name: False for name in outputs if name in self.constants}
        for node, operator in steps:
            for place, name in enumerate(node.inputs):
                if name not in self.constants or _is_number(self.constants[name], operator, place):
                    continue
                trained = place in operator.weights and _is_weight(self.constants[name], operator)
                used[name] = used.get(name, False) or trained
        return used


def _find_operator(node: Node) -> Operator:
    if node.operator in _SIZES and not node.domain:
        return Operator(lambda _node, x: x)  # the scope reads sizes itself
    operator = operator_for(node)
    if operator is None:
        raise node.refuse("has no counterpart in torch here")
    return operator


def _is_number(constant: Tensor, operator: Operator, place: int) -> bool:
    """Tell whether an operator takes a constant only as numbers."""
    if place in operator.numbers:
        return True
    small = numbers_of(constant) is not None
    return place in operator.either and small and (place not in operator.weights or constant.numel() == 1)


def _is_weight(constant: Tensor, operator: Operator) -> bool:
    if not constant.is_floating_point() or not constant.numel() or not bool(torch.isfinite(constant).all()):
        return False
    is_operand = bool(set(operator.either) & set(operator.weights))
    return not is_operand or float(constant.abs().max()) < _LARGEST_OPERAND


def _key(constant: Tensor) -> tuple[torch.Size, bytes]:
    """Return what is equal for equal constants."""
    return constant.shape, hashlib.sha256(
        constant.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    ).digest()


def _needed(steps: list[Step], wanted: set[str]) -> list[Step]:
    """Return the steps whose results are used, in order."""
    kept = []
    for step in reversed(steps):
        if wanted & set(step.node.outputs):
            kept.append(step)
            wanted |= set(step.node.inputs)
    return kept[::-1]

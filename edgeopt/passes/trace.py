"""``trace``: a model as a plain graph of ATen operators."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgeopt.errors import StepError

ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
REGIONS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""Calls of a region of the graph, and which argument the region is; its own arguments follow."""


def trace(
    model: nn.Module, example_inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], fx.GraphModule, tuple[str, ...]]:
    """Export a model in evaluation mode; the model itself is left as it is.

    Returns:
        The inputs that it was traced with, its graph with tensors of its own, and notes on fall-backs.

    Raises:
        StepError: ``torch.export`` refuses the model.
    """
    inputs = tuple(_widened(example) for example in example_inputs)
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        return inputs, *_traced(model, inputs)
    finally:
        for module in training:
            module.training = True


def _traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[fx.GraphModule, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    program = _export(model, inputs, _dynamic(model, len(inputs)))
    if isinstance(program, str):
        notes = (f"traced with a fixed batch of {inputs[0].shape[0]}: {program.splitlines()[0]}",)
        program = _export(model, inputs, None)
    if isinstance(program, str):
        raise StepError(
            "trace",
            f"torch.export cannot read {type(model).__name__}: {program.splitlines()[0]} "
            "Rewrite the part of forward() that depends on the values of tensors.",
            program,
        )
    return _plain(program), notes


def _widened(example: Tensor) -> Tensor:
    """Repeat a batch of 1."""
    return example.repeat(2, *[1] * (example.ndim - 1)) if example.ndim and example.shape[0] == 1 else example


def _export(model: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any) -> torch.export.ExportedProgram | str:
    """Export, or say why not. The fused path of transformers is off: its operator does not train."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to authors of models
            fresh = tuple(value.clone() for value in inputs)  # an attempt leaves its marks on the tensors
            return torch.export.export(model, fresh, dynamic_shapes=dynamic, strict=False)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        NotImplementedError,
        AssertionError,
    ) as error:
        return f"{type(error).__name__}: {str(error).strip()}\n{traceback.format_exc()}"
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _dynamic(model: nn.Module, count: int) -> tuple[Any, ...]:
    """Let the first dimension of every input be dynamic; inputs that ``forward`` takes as ``*args`` are nested."""
    batch = {0: torch.export.Dim.DYNAMIC}
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
    if len(named) == len(parameters) or len(named) >= count:
        return (batch,) * count
    before = next(at for at, parameter in enumerate(parameters) if parameter.kind is parameter.VAR_POSITIONAL)
    return (*(batch,) * before, (batch,) * (count - before))


def _plain(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Turn an exported program into a plain graph module with tensors of its own.

    Plain: inputs by position, outputs in the model's own nesting, no assertions, no unused nodes, no paths of source
    files in the metadata, and ``reshape`` for ``view`` (which fails in channels-last memory).
    """
    exported = program.module(check_guards=False)
    graph = exported.graph
    result = next(node for node in graph.nodes if node.op == "output")
    nesting = program.call_spec.out_spec
    assert nesting is not None, "an exported program has outputs"
    result.args = (_nested(pytree.tree_unflatten(list(result.args[0]), nesting)),)
    _inline(exported)
    graph.set_codegen(fx.graph.CodeGen())
    for node in reversed(list(graph.nodes)):
        node.meta = {}
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if name in ASSERTIONS or (not node.users and node.op in ("get_attr", "call_module")):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    own: dict[int, Any] = {}
    attributes = {}
    for target in {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}:
        value = operator.attrgetter(target)(exported)
        attributes[target] = own.setdefault(id(value), copy.deepcopy(value))
    return fx.GraphModule(attributes, graph)


def _nested(outputs: Any) -> Any:
    """Turn classes of outputs (of Hugging Face, dataclasses) into plain dicts, and nothing else."""
    if isinstance(outputs, Mapping):
        return {key: _nested(value) for key, value in outputs.items()}
    if dataclasses.is_dataclass(outputs):
        return {field.name: _nested(getattr(outputs, field.name)) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, (tuple, list)):
        return type(outputs)(map(_nested, outputs)) if type(outputs) in (tuple, list) else tuple(map(_nested, outputs))
    return outputs


def _inline(module: Any) -> None:
    """Put the nodes of regions (autocast, gradients off) in place of their calls; what had no gradient is detached."""
    graph = module.graph
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in REGIONS:
            continue
        at = REGIONS[name]
        region = operator.attrgetter(str(node.args[at].target))(module)
        _inline(region)
        values = dict(zip(region.graph.find_nodes(op="placeholder"), node.args[at + 1 :], strict=True))
        with graph.inserting_before(node):
            results: Any = graph.graph_copy(region.graph, values)
            if name == "wrap_with_set_grad_enabled" and node.args[0] is False:
                results = [graph.call_function(torch.ops.aten.detach.default, (result,)) for result in results]
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)

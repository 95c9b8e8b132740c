"""``trace``: a model goes in, a plain graph of ATen operators comes out."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
import traceback
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from edgeopt.errors import StepError
from edgeopt.passes.recurrent_ops import dynamic_recurrent_layers, restore_recurrent_layers
from edgeopt.passes.trainable import make_trainable
from edgeopt.task.dynamic_axes import BATCH, AxisNames

FIXED_BATCH_NOTE = "traced with a fixed batch"
"""The beginning of the note on a graph that runs only on batches of the example's size."""
_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
_REGIONS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""Operators that call a region of the graph, and the position of the region among their arguments; the region's own
arguments follow it."""
_PACKED = (
    "its recurrent layer runs on a packed sequence, which cannot be exported. Give the layer the padded sequences, and "
    "choose the last step of each by its length."
)


def trace(
    model: nn.Module, example_inputs: tuple[Tensor, ...], axes: AxisNames | None = None
) -> tuple[tuple[Tensor, ...], fx.GraphModule, tuple[str, ...]]:
    """Export a model in evaluation mode; the model itself is not changed.

    Args:
        model: Any module that ``torch.export`` can export.
        example_inputs: Its inputs.
        axes: Their dynamic dimensions; None if that is the first of each, the batch.

    Returns:
        The inputs used for tracing, a graph with its own copies of the tensors, and notes on fall-backs. All of its
        parameters can be trained, also those that the user had frozen.

    Raises:
        StepError: ``torch.export`` cannot export the model, or not with the dynamic dimensions besides the batch.
    """
    if axes is None:
        axes = [{0: BATCH} if example.dim() else {} for example in example_inputs]
    inputs = tuple(_repeat_single(example, dims) for example, dims in zip(example_inputs, axes, strict=True))
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        return inputs, *_export_graph(model, inputs, axes)
    finally:
        for module in training:
            module.training = True


def _export_graph(
    model: nn.Module, inputs: tuple[Tensor, ...], axes: AxisNames
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    others = sorted({name for dims in axes for name in dims.values()} - {BATCH})
    with dynamic_recurrent_layers() if others else nullcontext():
        program = _export(model, inputs, _dynamic_shapes(model, axes))
    if isinstance(program, str) and others:
        raise StepError(
            "trace",
            f"torch.export cannot export {type(model).__name__} with dynamic dimensions ({', '.join(others)}): "
            f"{program.splitlines()[0]} Rewrite the part of forward() that depends on that size, or leave the "
            "dimension out of dynamic_axes and give training batches of the evaluation's size.",
            program,
        )
    if isinstance(program, str):
        batch = next((value.shape[dim] for value, dims in zip(inputs, axes, strict=True) for dim in dims), 1)
        notes = (f"{FIXED_BATCH_NOTE} of {batch}: {program.splitlines()[0]}",)
        program = _export(model, inputs, None)
    if isinstance(program, str):
        raise StepError(
            "trace",
            f"torch.export cannot export {type(model).__name__}: {program.splitlines()[0]} "
            "Rewrite the part of forward() that depends on tensor values.",
            program,
        )
    module = _plain_graph(program)
    return module, (*notes, *make_trainable(module))


def _repeat_single(example: Tensor, dims: Mapping[int, str]) -> Tensor:
    """Repeat a batch of 1, which ``torch.export`` would take for a constant."""
    axis = next((dim for dim, name in dims.items() if name == BATCH), None)
    if axis is None or example.shape[axis] != 1:
        return example
    return torch.cat([example, example], axis)


def _export(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any) -> torch.export.ExportedProgram | str:
    """Export, or return the reason for the failure. Transformers' fused path is off: its operator cannot be trained."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice meant for model authors
            fresh = tuple(value.clone() for value in inputs)  # a failed attempt leaves marks on the tensors
            return torch.export.export(model, fresh, dynamic_shapes=dynamic_shapes, strict=False)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        NotImplementedError,
        AssertionError,
    ) as error:
        reason = _PACKED if _has_packed_sequence(error) else f"{type(error).__name__}: {str(error).strip()}"
        return f"{reason}\n{traceback.format_exc()}"
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _has_packed_sequence(error: BaseException) -> bool:
    """Tell whether a layer that failed was given a packed sequence."""
    values = (value for frame, _ in traceback.walk_tb(error.__traceback__) for value in frame.f_locals.values())
    return any(isinstance(value, PackedSequence) for value in values)


def _dynamic_shapes(model: nn.Module, axes: AxisNames) -> tuple[Any, ...]:
    """Return dynamic dimensions as ``torch.export`` takes them: those of ``*args`` of ``forward`` are in a tuple."""
    shapes = tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in axes)
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
    if len(named) == len(parameters) or len(named) >= len(shapes):
        return shapes
    position = next(at for at, parameter in enumerate(parameters) if parameter.kind is parameter.VAR_POSITIONAL)
    return (*shapes[:position], shapes[position:])


def _plain_graph(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Turn an exported program into a plain graph module with its own copies of the tensors.

    Plain means: inputs by position, outputs nested as in the model, no assertions, no unused nodes, no source paths in
    the metadata, and ``reshape`` instead of ``view`` (which fails in channels-last memory).
    """
    exported = program.module(check_guards=False)
    graph = exported.graph
    output = next(node for node in graph.nodes if node.op == "output")
    nesting = program.call_spec.out_spec
    assert nesting is not None, "an exported program has outputs"
    output.args = (_plain_outputs(pytree.tree_unflatten(list(output.args[0]), nesting)),)
    _inline_regions(exported)
    restore_recurrent_layers(graph)
    graph.set_codegen(fx.graph.CodeGen())
    for node in reversed(list(graph.nodes)):
        node.meta = {}
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if name in _ASSERTIONS or (not node.users and node.op in ("get_attr", "call_module")):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    copies: dict[int, Any] = {}
    attributes = {}
    for target in {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}:
        value = operator.attrgetter(target)(exported)
        attributes[target] = copies.setdefault(id(value), copy.deepcopy(value))
    return fx.GraphModule(attributes, graph)


def _plain_outputs(outputs: Any) -> Any:
    """Turn output classes (Hugging Face outputs, dataclasses) into plain dicts, and change nothing else."""
    if isinstance(outputs, Mapping):
        return {key: _plain_outputs(value) for key, value in outputs.items()}
    if dataclasses.is_dataclass(outputs):
        return {field.name: _plain_outputs(getattr(outputs, field.name)) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, (tuple, list)):
        return (
            type(outputs)(map(_plain_outputs, outputs))
            if type(outputs) in (tuple, list)
            else tuple(map(_plain_outputs, outputs))
        )
    return outputs


def _inline_regions(module: Any) -> None:
    """Replace calls of regions (autocast, no_grad) by the nodes inside; results of a no_grad region are detached."""
    graph = module.graph
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in _REGIONS:
            continue
        position = _REGIONS[name]
        region = operator.attrgetter(str(node.args[position].target))(module)
        _inline_regions(region)
        values = dict(zip(region.graph.find_nodes(op="placeholder"), node.args[position + 1 :], strict=True))
        with graph.inserting_before(node):
            results: Any = graph.graph_copy(region.graph, values)
            if name == "wrap_with_set_grad_enabled" and node.args[0] is False:
                results = [graph.call_function(torch.ops.aten.detach.default, (result,)) for result in results]
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)

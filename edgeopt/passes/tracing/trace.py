"""``trace``: a model goes in, a plain graph of ATen operators comes out."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import io
import logging
import operator
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgeopt.errors import StepError
from edgeopt.passes.aten import read_attribute
from edgeopt.passes.prune.rules import rule_for
from edgeopt.passes.stochastic import ATTENTION_DROPOUT, SAMPLE_DROPOUT, mark_dropouts, visible_dropouts
from edgeopt.passes.tracing.autocast import AUTOCAST_NOTE, NEEDS_AUTOCAST, without_autocast
from edgeopt.passes.tracing.check import compare_with_model
from edgeopt.passes.tracing.composites import decompose_composites
from edgeopt.passes.tracing.failures import TraceFailure, explain_failure
from edgeopt.passes.tracing.in_place import copy_before_writing
from edgeopt.passes.tracing.native_norms import write_plain_norms
from edgeopt.passes.tracing.recurrent_ops import recurrent_layers_as_one, restore_recurrent_layers
from edgeopt.passes.tracing.spectral_norm import fold_spectral_norms
from edgeopt.passes.tracing.trainable import make_trainable
from edgeopt.passes.tracing.vmap_regions import inline_vmaps
from edgeopt.passes.training_differences import Modes, count_random_nodes, describe_modes, run_in_both_modes
from edgeopt.passes.training_graph import moving_averages
from edgeopt.task.batch_axes import Axes, find_batch_axes
from edgeopt.task.dynamic_axes import BATCH, AxisNames

FIXED_BATCH_NOTE = "traced with a fixed batch"
"""The beginning of the note on a graph that runs only on batches of the example's size."""
_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
_REGIONS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""Operators that call a region of the graph, and the position of the region among their arguments; the region's own
arguments follow it."""
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError, AssertionError)
"""Of ``torch.export``, on code that it cannot record."""
_NOISY_LOGGERS = (
    "torch.export", "torch.fx.experimental.symbolic_shapes", "torch._export.non_strict_utils",
    "torch._subclasses.fake_tensor",
)  # fmt: skip
_log = logging.getLogger(__name__)


def trace(
    model: nn.Module, example_inputs: tuple[Tensor, ...], axes: AxisNames | None = None, *, share_tensors: bool = False
) -> tuple[tuple[Tensor, ...], fx.GraphModule, tuple[str, ...]]:
    """Export a model in evaluation mode; the model itself is not changed.

    Args:
        model: Any module that ``torch.export`` can export.
        example_inputs: Its inputs.
        axes: Their dynamic dimensions. None: the batch, which is the first dimension of a single input, and is found
            by running the model if there are several.
        share_tensors: Leave the tensors in the model's memory instead of copying them.

    Returns:
        The inputs used for tracing, a graph with its tensors, and notes on fall-backs. All of its parameters can be
        trained, also those that the user had frozen.

    Raises:
        StepError: ``torch.export`` cannot export the model, or not with the dynamic dimensions besides the batch, or
            its graph computes something else than the model.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with without_autocast() as use:
            if axes is None:
                axes = [{} if dim is None else {dim: BATCH} for dim in _find_batch(model, example_inputs)]
            inputs = tuple(_repeat_single(example, dims) for example, dims in zip(example_inputs, axes, strict=True))
            _run_first(model, inputs)
            modes = run_in_both_modes(model, inputs)
            is_repeated = len(inputs) == 1 and inputs[0].shape != example_inputs[0].shape
            if modes.evaluated is None and is_repeated and _runs(model, example_inputs):
                raise StepError("trace", _describe_single(model, inputs[0], modes))
            if modes.evaluated is None and use.is_used:
                raise StepError("trace", f"{type(model).__name__} does not run ({modes.problem}). {NEEDS_AUTOCAST}")
            model.eval()
            module, notes = _export_graph(model, inputs, axes, modes, share_tensors)
            is_fixed = any(note.startswith(FIXED_BATCH_NOTE) for note in notes)
            random = compare_with_model(model, module, inputs, axes, is_batch_dynamic=not is_fixed)
        return inputs, module, (*notes, *random, *(AUTOCAST_NOTE,) * use.is_used)
    finally:
        for part, training in flags:
            part.training = training


def _export_graph(
    model: nn.Module, inputs: tuple[Tensor, ...], axes: AxisNames, modes: Modes, share_tensors: bool
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    others = sorted({name for dims in axes for name in dims.values()} - {BATCH})
    with (
        recurrent_layers_as_one(),
        visible_dropouts(model, modes.sample_dropouts),
    ):
        program = _export(model, inputs, _dynamic_shapes(model, axes))
    if isinstance(program, TraceFailure) and others:
        raise StepError(
            "trace",
            f"torch.export cannot export {type(model).__name__} with dynamic dimensions ({', '.join(others)}): "
            f"{program.reason} Otherwise leave the dimension out of dynamic_axes, and give training batches of the "
            "evaluation's size.",
            program.trace,
        )
    if isinstance(program, TraceFailure):
        batch = next((value.shape[dim] for value, dims in zip(inputs, axes, strict=True) for dim in dims), 1)
        notes = (f"{FIXED_BATCH_NOTE} of {batch}: {program.reason}",)
        with recurrent_layers_as_one(), visible_dropouts(model, modes.sample_dropouts):
            program = _export(model, inputs, None)
    if isinstance(program, TraceFailure):
        raise StepError("trace", _describe_failure(model, inputs, modes, program), program.trace)
    module, random_nodes = _plain_graph(program, modes, share_tensors)
    norms = fold_spectral_norms(module)
    notes = (*notes, *make_trainable(module))
    return module, (*notes, *describe_modes(model, modes, module, inputs, random_nodes, norms))


def _run_first(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Run a model once, so that what only its first call does, such as registering hooks, is done before the trace."""
    with torch.no_grad(), warnings.catch_warnings(), contextlib.suppress(*_FAILURES):  # what fails is named later
        warnings.simplefilter("ignore")
        model(*(value.clone() for value in inputs))


def _runs(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Tell whether a model, in evaluation mode, runs on inputs."""
    model.eval()
    try:
        with torch.no_grad():
            model(*(value.clone() for value in inputs))
    except _FAILURES:
        return False
    return True


def _find_batch(model: nn.Module, inputs: tuple[Tensor, ...]) -> Axes:
    """Return the dimension of each input that is the batch."""
    if len(inputs) == 1:
        return (0 if inputs[0].dim() else None,)

    def run(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs = model(*(value.clone() for value in values))
        return tuple(value for value in pytree.tree_leaves(_plain_outputs(outputs)) if isinstance(value, Tensor))

    names = [f"input {number}" for number in range(len(inputs))]
    return find_batch_axes(run, inputs, names, ["?"] * len(inputs)).inputs


def _repeat_single(example: Tensor, dims: Mapping[int, str]) -> Tensor:
    """Repeat a batch of 1, which ``torch.export`` would take for a constant."""
    axis = next((dim for dim, name in dims.items() if name == BATCH), None)
    if axis is None or example.shape[axis] != 1:
        return example
    return torch.cat([example, example], axis)


def _describe_single(model: nn.Module, repeated: Tensor, modes: Modes) -> str:
    """Return why a model that takes one sample only cannot be traced."""
    name, shape = type(model).__name__, tuple(repeated.shape)
    return (
        f"{name} runs on one sample, but not on two of shape {shape} ({modes.problem}). Candidates train in batches, "
        "so keep the batch in forward(): x.flatten(1) in place of x.flatten() or x.reshape(-1), and x.squeeze(1) in "
        "place of x.squeeze() or x.squeeze(0). The file may still run one sample at a time."
    )


def _describe_failure(model: nn.Module, inputs: tuple[Tensor, ...], modes: Modes, failure: TraceFailure) -> str:
    """Return why a model cannot be traced: it does not even run, or ``torch.export`` cannot record it."""
    name = type(model).__name__
    if modes.evaluated is not None:
        return f"torch.export cannot export {name}: {failure.reason}"
    shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
    return (
        f"{name} does not run on inputs of shape {shapes} ({modes.problem}). If one of them has its batch in another "
        "dimension, as a recurrent state of shape (layers, batch, hidden) has, name it in batch_dim of the task, such "
        "as {'state': 1}; a batch of 1 is repeated there for the trace."
    )


def _export(
    model: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any
) -> torch.export.ExportedProgram | TraceFailure:
    """Export, or return why that fails.

    A library may take another path while it is compiled, which has less tried; then the path is exported that the model
    takes when it runs. Transformers' fused path is off: its operator cannot be trained.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        program = _try_export(model, inputs, dynamic_shapes)
        if isinstance(program, TraceFailure):
            with _seems_to_run():
                as_run = _try_export(model, inputs, dynamic_shapes)
            return program if isinstance(as_run, TraceFailure) else as_run
        return program
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _try_export(
    model: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any
) -> torch.export.ExportedProgram | TraceFailure:
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), _quiet_loggers(), contextlib.redirect_stderr(printed), moving_averages(model):
            warnings.simplefilter("ignore")  # advice meant for model authors
            fresh = tuple(value.clone() for value in inputs)  # a failed attempt leaves marks on the tensors
            return torch.export.export(model, fresh, dynamic_shapes=dynamic_shapes, strict=False)
    except _FAILURES as error:
        failure = explain_failure(model, error, printed.getvalue())
        _log.debug("torch.export failed on %s:\n%s", type(model).__name__, failure.trace)
        return failure


@contextlib.contextmanager
def _seems_to_run() -> Iterator[None]:
    """Answer no to code that asks PyTorch whether it is being compiled, for the length of a block."""
    asked = torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: False
    try:
        yield
    finally:
        torch.compiler.is_compiling = asked


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Silence torch.export's own warnings on user code, for the length of a block; the debug log gets its graph."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, _NOISY_LOGGERS)]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _dynamic_shapes(model: nn.Module, axes: AxisNames) -> tuple[Any, ...]:
    """Return dynamic dimensions as ``torch.export`` takes them: those of ``*args`` of ``forward`` are in a tuple."""
    shapes = tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in axes)
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
    if len(named) == len(parameters) or len(named) >= len(shapes):
        return shapes
    position = next(at for at, parameter in enumerate(parameters) if parameter.kind is parameter.VAR_POSITIONAL)
    return (*shapes[:position], shapes[position:])


def _plain_graph(
    program: torch.export.ExportedProgram, modes: Modes, share_tensors: bool
) -> tuple[fx.GraphModule, Counter[str]]:
    """Turn an exported program into a plain graph module with tensors of its own, and count random nodes.

    Plain means: inputs by position, outputs nested as in the model, no assertions, no unused nodes, no composite
    operators without a pruning rule, no source paths in the metadata, and ``reshape`` instead of ``view`` (which fails
    in channels-last memory).
    """
    exported = program.module(check_guards=False)
    graph = exported.graph
    output = next(node for node in graph.nodes if node.op == "output")
    nesting = program.call_spec.out_spec
    assert nesting is not None, "an exported program has outputs"
    output.args = (_plain_outputs(pytree.tree_unflatten(list(output.args[0]), nesting)),)
    _inline_regions(exported)
    inline_vmaps(exported)
    restore_recurrent_layers(graph)
    _drop_empty_parts(graph)
    copy_before_writing(graph)
    write_plain_norms(graph)
    decompose_composites(exported, lambda target: rule_for(target) is not None)
    graph.set_codegen(fx.graph.CodeGen())
    mark_dropouts(graph, modes.sample_dropouts, modes.attention_dropouts)
    random_nodes = count_random_nodes(graph)
    for node in reversed(list(graph.nodes)):
        node.meta = {key: node.meta[key] for key in (SAMPLE_DROPOUT, ATTENTION_DROPOUT) if key in node.meta}
        if node.target in _VIEWS:
            node.target = torch.ops.aten.reshape.default
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if name in _ASSERTIONS or (not node.users and node.op in ("get_attr", "call_module")):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    copies: dict[int, Any] = {}
    attributes = {}
    for target in {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}:
        value = operator.attrgetter(target)(exported)
        attributes[target] = copies.setdefault(id(value), _alias(value) if share_tensors else copy.deepcopy(value))
    return fx.GraphModule(attributes, graph), random_nodes


def _drop_empty_parts(graph: fx.Graph) -> None:
    """Leave tensors without elements out of concatenations: a network may be configured without its extra tokens."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
        parts = list(node.args[0])
        kept = [part for part in parts if 0 not in _static_sizes(part.meta.get("val"))]
        if kept and len(kept) < len(parts):
            node.args = (kept, *node.args[1:])


def _static_sizes(value: Any) -> list[int]:
    return [size for size in value.shape if isinstance(size, int)] if isinstance(value, Tensor) else []


def _alias(value: Any) -> Any:
    """Return a parameter or buffer in the same memory; of anything else a copy."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach(), value.requires_grad)
    return value.detach() if isinstance(value, Tensor) else copy.deepcopy(value)


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
        region = read_attribute(module, node.args[position])
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

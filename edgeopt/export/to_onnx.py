"""A torch module to one ``.onnx`` file: no external data, no metadata, a dynamic batch axis, below the ceilings."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import onnx
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from edgeopt.errors import StepError

Exporter = Literal["dynamo", "torchscript"]

_STAGE = "export"
DYNAMO_OPSET = 18  # what dynamo translates to; asked for less it silently gives this
PREFERRED_OPSET = 18  # both exporters know it, and every ONNX Runtime since 1.14 does
EXAMPLE_BATCH = 2  # an example batch of 1 is silently taken for a constant
KEPT_LINES = 3  # of an exporter's message; the trace has it all
_TRACEABLE = {
    torch.ops.aten.sym_size.int: "size",
    torch.ops.aten.view.default: "view",
    torch.ops.aten.reshape.default: "reshape",
    torch.ops.aten.expand.default: "expand",
}
_REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
_CHATTERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class Exported(NamedTuple):
    """One exported file."""

    path: Path
    exporter: Exporter
    opset: int
    ir_version: int
    notes: tuple[str, ...]


def export(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    max_opset: int,
    max_ir: int,
    exporter: Exporter = "dynamo",
    dynamic_batch: bool = True,
) -> Exported:
    """Write ``module`` in evaluation mode to ``path``.

    Args:
        module: A network, or the ``torch.fx.GraphModule`` of ``torch.export`` (as pruned networks are). Its
            ``training`` flags are as before afterwards.
        example_inputs: Positional inputs; dimension 0 is the batch.
        path: Where to write; the folder exists.
        input_names: One for each example input.
        output_names: One for each output.
        max_opset: The newest operator set that the target loads.
        max_ir: The newest file format (``ir_version``) that the target loads.
        exporter: Which one of torch's two.
        dynamic_batch: Leave the batch open; False fixes the batch of ``example_inputs``.

    Raises:
        StepError: the exporter refuses the module, or what comes out breaks a ceiling or fixed the open batch.
    """
    inputs = _with_example_batch(example_inputs) if dynamic_batch else example_inputs
    inputs = tuple(one.contiguous() for one in inputs)
    notes: list[str] = []
    try:
        with _quiet(notes), _evaluating(module), _row_major(module), torch.no_grad():
            plain = _plain(module)
            write = _by_dynamo if exporter == "dynamo" else _by_torchscript
            model = write(plain, inputs, list(input_names), list(output_names), max_opset, dynamic_batch)
    except _REFUSALS as error:
        trace = traceback.format_exc()
        raise StepError(_STAGE, f"the {exporter} exporter refuses the module: {_first_lines(error)}", trace) from error
    strip_metadata(model)
    _lower_ir(model)
    _check(model, exporter, output_names, max_opset, max_ir, dynamic_batch)
    path.write_bytes(model.SerializeToString(deterministic=True))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return Exported(path, exporter, opset, model.ir_version, tuple(dict.fromkeys(notes)))


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what no runtime reads: doc strings, the exporter's traces, inferred shapes of inner values."""
    graph = model.graph
    del graph.value_info[:]
    holders = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
    for holder in holders:
        holder.ClearField("doc_string")
        del holder.metadata_props[:]


def _by_dynamo(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    max_opset: int,
    dynamic_batch: bool,
) -> onnx.ModelProto:
    """Export through ``torch.export``."""
    if max_opset < DYNAMO_OPSET:
        raise StepError(
            _STAGE,
            f"the dynamo exporter writes operator set {DYNAMO_OPSET} at least, the target allows {max_opset}. "
            "Use the TorchScript exporter.",
        )
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs) if dynamic_batch else None
    program = torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=input_names,
        output_names=output_names,
        opset_version=PREFERRED_OPSET,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("it returned no program")
    model: onnx.ModelProto = program.model_proto
    return model


def _by_torchscript(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    max_opset: int,
    dynamic_batch: bool,
) -> onnx.ModelProto:
    """Export by tracing."""
    axes = {name: {0: "batch"} for name in (*input_names, *output_names)} if dynamic_batch else None
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        file = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            inputs,
            file,
            dynamo=False,
            dynamic_axes=axes,
            input_names=input_names,
            output_names=output_names,
            opset_version=min(max_opset, PREFERRED_OPSET),
        )
        return onnx.load_model(file)


def _with_example_batch(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs with a batch of 2, repeating a single sample."""
    return tuple(
        one[:EXAMPLE_BATCH] if len(one) >= EXAMPLE_BATCH else torch.cat([one] * EXAMPLE_BATCH) for one in inputs
    )


def _plain(module: nn.Module) -> nn.Module:
    """Return a module that both exporters can trace; parameters are shared, not copied.

    The graph of ``torch.export`` comes with guards that tracing cannot run, and reads and uses sizes by operators that
    tracing turns into constants; the methods of the same names stay open.
    """
    if not isinstance(module, torch.fx.GraphModule):
        return module
    graph = copy.deepcopy(module.graph)
    for node in list(graph.nodes):
        if node.target in ("_guards_fn", torch.ops.aten._assert_tensor_metadata.default):
            graph.erase_node(node)
        elif node.target in _TRACEABLE:
            node.op, node.target = "call_method", _TRACEABLE[node.target]
    plain = torch.fx.GraphModule(module, graph)
    plain.training = False
    return plain


@contextlib.contextmanager
def _row_major(module: nn.Module) -> Iterator[None]:
    """Hold every tensor in row-major memory.

    From channels-last weights dynamo derives strides, and a dozen nodes that gather by them where a reshape would do.
    """
    tensors = [*module.parameters(), *module.buffers()]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.contiguous()
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Hold every ``training`` flag at False; ``eval()`` is refused by the modules of ``torch.export``."""
    before = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in before:
            part.training = False
        yield
    finally:
        for part, training in before:
            part.training = training


@contextlib.contextmanager
def _quiet(notes: list[str]) -> Iterator[None]:
    """Keep the exporters off the terminal; a warning that the trace may not generalize becomes a note."""
    loggers = [logging.getLogger(name) for name in _CHATTERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            notes.extend(
                f"the exporter warns: {str(one.message).splitlines()[0]}"
                for one in caught
                if issubclass(one.category, TracerWarning)
            )


def _first_lines(error: BaseException) -> str:
    """Return an error's kind and the first lines of its message that say something."""
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {' '.join(lines[:KEPT_LINES])}"


def _lower_ir(model: onnx.ModelProto) -> None:
    """Drop unused operator sets, and write the oldest file format that the used ones allow."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.ir_version = min(model.ir_version, onnx.helper.find_min_ir_version_for(kept, ignore_unknown=True))


def _check(
    model: onnx.ModelProto,
    exporter: Exporter,
    output_names: Sequence[str],
    max_opset: int,
    max_ir: int,
    dynamic_batch: bool,
) -> None:
    """Raise StepError where the file is not what was asked for."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset > max_opset or model.ir_version > max_ir:
        raise StepError(
            _STAGE,
            f"the {exporter} exporter wrote operator set {opset} and IR {model.ir_version}; the target allows "
            f"{max_opset} and {max_ir}. Use the other exporter or raise min_onnxruntime in the profile.",
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StepError(_STAGE, f"the {exporter} exporter wrote an invalid file: {_first_lines(error)}") from error
    found = [value.name for value in model.graph.output]
    if found != list(output_names):
        raise StepError(_STAGE, f"the module gives outputs {found}, {list(output_names)} were named.")
    if not dynamic_batch:
        return
    for value in onnx.shape_inference.infer_shapes(model).graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].HasField("dim_value"):
            raise StepError(
                _STAGE, f"the {exporter} exporter fixed the batch of output '{value.name}' at {dims[0].dim_value}."
            )

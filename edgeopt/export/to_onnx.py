"""Export a torch module to one ``.onnx`` file.

The file has no external data, no metadata and a dynamic batch axis, and stays within the opset and IR limits.
"""

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
_DYNAMO_OPSET = 18  # the one that dynamo writes, also if asked for an older one
_PREFERRED_OPSET = 18  # supported by both exporters and by every ONNX Runtime since 1.14
_EXAMPLE_BATCH_SIZE = 2  # a batch of 1 would silently become a constant
_MAX_MESSAGE_LINES = 3  # of an exporter's error; the trace has all of them
_TRACEABLE = {
    torch.ops.aten.sym_size.int: "size",
    torch.ops.aten.view.default: "view",
    torch.ops.aten.reshape.default: "reshape",
    torch.ops.aten.expand.default: "expand",
}
_EXPORT_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class ExportResult(NamedTuple):
    """An exported file."""

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
) -> ExportResult:
    """Write ``module`` in evaluation mode to ``path``.

    Args:
        module: A network, or a ``torch.fx.GraphModule`` of ``torch.export`` (such as a pruned network). Its
            ``training`` flags are restored afterwards.
        example_inputs: Positional inputs; dimension 0 is the batch.
        path: Path of the file; the folder must exist.
        input_names: One name for each example input.
        output_names: One name for each output.
        max_opset: The newest operator set that the target supports.
        max_ir: The newest file format (``ir_version``) that the target supports.
        exporter: One of torch's two exporters.
        dynamic_batch: Whether the batch is dynamic; False fixes it at the batch of ``example_inputs``.

    Raises:
        StepError: the exporter fails, or its file exceeds a limit or has a fixed batch that should be dynamic.
    """
    inputs = _with_example_batch(example_inputs) if dynamic_batch else example_inputs
    inputs = tuple(tensor.contiguous() for tensor in inputs)
    notes: list[str] = []
    try:
        with _quiet(notes), _evaluating(module), _row_major(module), torch.no_grad():
            traceable = _make_traceable(module)
            write = _by_dynamo if exporter == "dynamo" else _by_torchscript
            model = write(traceable, inputs, list(input_names), list(output_names), max_opset, dynamic_batch)
    except _EXPORT_ERRORS as error:
        trace = traceback.format_exc()
        raise StepError(
            _STAGE, f"the {exporter} exporter cannot export the module: {_first_lines(error)}", trace
        ) from error
    strip_metadata(model)
    _lower_ir(model)
    _check(model, exporter, output_names, max_opset, max_ir, dynamic_batch)
    path.write_bytes(model.SerializeToString(deterministic=True))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return ExportResult(path, exporter, opset, model.ir_version, tuple(dict.fromkeys(notes)))


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove data that no runtime reads: doc strings, the exporter's traces, inferred shapes of inner values."""
    graph = model.graph
    del graph.value_info[:]
    protos = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
    for proto in protos:
        proto.ClearField("doc_string")
        del proto.metadata_props[:]


def _by_dynamo(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    max_opset: int,
    dynamic_batch: bool,
) -> onnx.ModelProto:
    """Export through ``torch.export``."""
    if max_opset < _DYNAMO_OPSET:
        raise StepError(
            _STAGE,
            f"the dynamo exporter writes operator set {_DYNAMO_OPSET}, but the target allows {max_opset} at most. "
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
        opset_version=_PREFERRED_OPSET,
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
    """Export by tracing with TorchScript."""
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
            opset_version=min(max_opset, _PREFERRED_OPSET),
        )
        return onnx.load_model(file)


def _with_example_batch(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs with a batch of 2; a single sample is repeated."""
    return tuple(
        tensor[:_EXAMPLE_BATCH_SIZE]
        if len(tensor) >= _EXAMPLE_BATCH_SIZE
        else torch.cat([tensor] * _EXAMPLE_BATCH_SIZE)
        for tensor in inputs
    )


def _make_traceable(module: nn.Module) -> nn.Module:
    """Return a module that both exporters can trace; parameters are shared, not copied.

    Graphs of ``torch.export`` have guards that tracing cannot run. Their operators on sizes become constants in a
    trace, while the methods of the same names stay dynamic.
    """
    if not isinstance(module, torch.fx.GraphModule):
        return module
    graph = copy.deepcopy(module.graph)
    for node in list(graph.nodes):
        if node.target in ("_guards_fn", torch.ops.aten._assert_tensor_metadata.default):
            graph.erase_node(node)
        elif node.target in _TRACEABLE:
            node.op, node.target = "call_method", _TRACEABLE[node.target]
    traceable = torch.fx.GraphModule(module, graph)
    traceable.training = False
    return traceable


@contextlib.contextmanager
def _row_major(module: nn.Module) -> Iterator[None]:
    """Keep every tensor in row-major memory.

    From channels-last weights dynamo derives strides, and a dozen nodes that gather by them instead of one reshape.
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
    """Keep every ``training`` flag at False. Modules of ``torch.export`` do not support ``eval()``."""
    before = [(submodule, submodule.training) for submodule in module.modules()]
    try:
        for submodule, _ in before:
            submodule.training = False
        yield
    finally:
        for submodule, training in before:
            submodule.training = training


@contextlib.contextmanager
def _quiet(notes: list[str]) -> Iterator[None]:
    """Silence the exporters; a warning that the trace may not generalize becomes a note."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
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
                f"the exporter warns: {str(warning.message).splitlines()[0]}"
                for warning in caught
                if issubclass(warning.category, TracerWarning)
            )


def _first_lines(error: BaseException) -> str:
    """Return an error's type and the first lines of its message that are not blank."""
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {' '.join(lines[:_MAX_MESSAGE_LINES])}"


def _lower_ir(model: onnx.ModelProto) -> None:
    """Drop unused operator sets, and set the oldest file format that the used ones allow."""
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
    """Raise StepError if the file is invalid, exceeds a limit, or has other outputs or a fixed batch."""
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
        raise StepError(_STAGE, f"the module has outputs {found}, but the names given are {list(output_names)}.")
    if not dynamic_batch:
        return
    for value in onnx.shape_inference.infer_shapes(model).graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].HasField("dim_value"):
            raise StepError(
                _STAGE, f"the {exporter} exporter fixed the batch of output '{value.name}' at {dims[0].dim_value}."
            )

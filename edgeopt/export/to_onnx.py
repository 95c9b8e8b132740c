"""Export a torch module to an ``.onnx``: one file, or a pair if its weights do not fit (``edgeopt.model_files``).

It has no metadata and dynamic dimensions as asked, and stays within the opset and IR limits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import onnx
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from edgeopt.errors import StepError
from edgeopt.export.exact_constants import exact_constants
from edgeopt.export.names import placeholder_names, set_names
from edgeopt.export.traceable import make_traceable
from edgeopt.model_files.inferred_shapes import infer_shapes, write_inferred_shapes
from edgeopt.model_files.layout import max_file_bytes
from edgeopt.model_files.tensors import read_from_elsewhere, weights_as_inputs, write_model

Exporter = Literal["dynamo", "torchscript"]

_STAGE = "export"
_DYNAMO_OPSET = 18  # the one that dynamo writes, also if asked for an older one
_PREFERRED_OPSET = 18  # supported by both exporters and by every ONNX Runtime since 1.14
_EXAMPLE_BATCH_SIZE = 2  # a batch of 1 would silently become a constant
_MAX_MESSAGE_LINES = 3  # of an exporter's error; the trace has all of them
_EXPORT_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


_AxisNames: TypeAlias = Sequence[Mapping[int, str]]
"""For each input, its dynamic dimensions and their names."""
_BATCH = "batch"


class _Interface(NamedTuple):
    """Inputs and outputs of a file."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    axes: tuple[Mapping[int, str], ...]
    output_batch: tuple[int | None, ...]

    @property
    def dynamic_names(self) -> set[str]:
        """Names of the dynamic dimensions."""
        return {name for dims in self.axes for name in dims.values()}


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
    axes: _AxisNames | None = None,
    output_batch: Sequence[int | None] | None = None,
) -> ExportResult:
    """Write ``module`` in evaluation mode to ``path``.

    Args:
        module: A network, or a ``torch.fx.GraphModule`` of ``torch.export`` (such as a pruned network). Its
            ``training`` flags are restored afterwards.
        example_inputs: Positional inputs.
        path: Path of the file; the folder must exist.
        input_names: One name for each example input.
        output_names: One name for each output.
        max_opset: The newest operator set that the target supports.
        max_ir: The newest file format (``ir_version``) that the target supports.
        exporter: One of torch's two exporters.
        axes: For each input, its dynamic dimensions and their names, of which ``batch`` is the batch. None: the first
            dimension of every input is the batch. Everything else is fixed at the size of ``example_inputs``.
        output_batch: For each output, the dimension that is the batch; None in it for an output without one.

    Raises:
        StepError: the exporter fails, or its file exceeds a limit or has a fixed dimension that should be dynamic.
    """
    axes = [{0: _BATCH} for _ in example_inputs] if axes is None else axes
    output_batch = (0,) * len(output_names) if output_batch is None else output_batch
    interface = _Interface(tuple(input_names), tuple(output_names), tuple(axes), tuple(output_batch))
    inputs = tuple(
        _with_example_batch(value, dims).contiguous() for value, dims in zip(example_inputs, axes, strict=True)
    )
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="export.partial-", dir=path.parent) as folder:
        try:
            with _quiet(notes), _evaluating(module), _row_major(module), torch.no_grad():
                traceable = make_traceable(module, has_complex=exporter == "dynamo")
                write = _by_dynamo if exporter == "dynamo" else _by_torchscript
                model = write(traceable, inputs, interface, max_opset, Path(folder))
        except _EXPORT_ERRORS as error:
            trace = traceback.format_exc()
            raise StepError(
                _STAGE, f"the {exporter} exporter cannot export the module: {_first_lines(error)}", trace
            ) from error
        strip_metadata(model)
        _lower_ir(model)
        _check(model, exporter, interface, max_opset, max_ir)
        write_model(model, path)
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
    module: nn.Module, inputs: tuple[Tensor, ...], interface: _Interface, max_opset: int, folder: Path
) -> onnx.ModelProto:
    """Export through ``torch.export``; weights that do not fit into one file lie in the folder."""
    if max_opset < _DYNAMO_OPSET:
        raise StepError(
            _STAGE,
            f"the dynamo exporter writes operator set {_DYNAMO_OPSET}, but the target allows {max_opset} at most. "
            "Use the TorchScript exporter.",
        )
    dims = {name: torch.export.Dim(name) for name in interface.dynamic_names}
    shapes = tuple({dim: dims[name] for dim, name in one.items()} for one in interface.axes)
    with exact_constants():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            dynamic_shapes=shapes if dims else None,
            input_names=placeholder_names("input", len(interface.input_names)),
            output_names=placeholder_names("output", len(interface.output_names)),
            opset_version=_PREFERRED_OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("it returned no program")
    if _weight_bytes(module) > max_file_bytes():
        program.save(folder / "exported.onnx", external_data=True)
        model = read_from_elsewhere(folder / "exported.onnx")
    else:
        model = program.model_proto
    set_names(model, interface.input_names, interface.output_names)
    return model


def _weight_bytes(module: nn.Module) -> int:
    tensors = {id(value): value for value in (*module.parameters(), *module.buffers())}
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _by_torchscript(
    module: nn.Module, inputs: tuple[Tensor, ...], interface: _Interface, max_opset: int, folder: Path
) -> onnx.ModelProto:
    """Export by tracing with TorchScript; weights that do not fit into one file lie in the folder."""
    inputs_of = placeholder_names("input", len(interface.input_names))
    outputs_of = placeholder_names("output", len(interface.output_names))
    axes = dict(zip(inputs_of, map(dict, interface.axes), strict=True))
    axes |= {
        name: {} if dim is None else {dim: _BATCH} for name, dim in zip(outputs_of, interface.output_batch, strict=True)
    }
    file = folder / "traced.onnx"
    torch.onnx.export(
        module,
        inputs,
        file,
        dynamo=False,
        dynamic_axes={name: dims for name, dims in axes.items() if dims} or None,
        input_names=inputs_of,
        output_names=outputs_of,
        opset_version=min(max_opset, _PREFERRED_OPSET),
    )
    model = read_from_elsewhere(file)
    set_names(model, interface.input_names, interface.output_names)
    return _with_inferred_outputs(model) if interface.dynamic_names - {_BATCH} else model


def _with_inferred_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a traced model whose outputs have inferred shapes: a trace writes those of the example."""
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del model.graph.value_info[:]
    write_inferred_shapes(model, data_prop=True)
    for value in model.graph.output:
        for number, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = f"{value.name}_{number}"
    return model


def _with_example_batch(value: Tensor, dims: Mapping[int, str]) -> Tensor:
    """Return an input with a batch of 2; a single sample is repeated."""
    axis = next((dim for dim, name in dims.items() if name == _BATCH), None)
    if axis is None:
        return value
    if value.shape[axis] < _EXAMPLE_BATCH_SIZE:
        return torch.cat([value] * _EXAMPLE_BATCH_SIZE, axis)
    return value.narrow(axis, 0, _EXAMPLE_BATCH_SIZE)


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


def _check(model: onnx.ModelProto, exporter: Exporter, interface: _Interface, max_opset: int, max_ir: int) -> None:
    """Raise StepError if the file is invalid, exceeds a limit, or has other outputs or a fixed dimension."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset > max_opset or model.ir_version > max_ir:
        raise StepError(
            _STAGE,
            f"the {exporter} exporter wrote operator set {opset} and IR {model.ir_version}; the target allows "
            f"{max_opset} and {max_ir}. Use the other exporter or raise min_onnxruntime in the profile.",
        )
    try:
        onnx.checker.check_model(weights_as_inputs(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StepError(_STAGE, f"the {exporter} exporter wrote an invalid file: {_first_lines(error)}") from error
    found = [value.name for value in model.graph.output]
    if found != list(interface.output_names):
        raise StepError(
            _STAGE, f"the module has outputs {found}, but the names given are {list(interface.output_names)}."
        )
    inputs = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for input_name, dims in zip(interface.input_names, interface.axes, strict=True):
        for dim, name in dims.items():
            if input_name in inputs and inputs[input_name][dim].HasField("dim_value"):
                size = inputs[input_name][dim].dim_value
                raise StepError(
                    _STAGE, f"the {exporter} exporter fixed dimension {name} of input '{input_name}' at {size}."
                )
    if not any(_BATCH in dims.values() for dims in interface.axes):
        return
    outputs = infer_shapes(model).output
    for value, batch in zip(outputs, interface.output_batch, strict=True):
        shape = value.type.tensor_type.shape.dim
        if batch is not None and batch < len(shape) and shape[batch].HasField("dim_value"):
            raise StepError(
                _STAGE,
                f"the {exporter} exporter fixed the batch of output '{value.name}' at {shape[batch].dim_value}.",
            )

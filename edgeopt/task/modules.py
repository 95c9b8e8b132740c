"""What ``build_model()`` returns, made ready: refused, unwrapped, or put into float32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import TaskError
from edgeopt.task.inputs import InputLayout
from edgeopt.task.nesting import tensors_of

NARROW_TYPES = (torch.float16, torch.bfloat16)
_ROUNDING_TOLERANCE = 1e-3
"""Of the largest value of an output; that of a network whose inputs are near 1 stays below 1e-5."""


def prepare_module(model: Any, part: str, spec: str) -> nn.Module:
    """Return a user's module in evaluation mode on the CPU, without wrappers of parallel or compiled modules.

    Args:
        model: As the user's function returned it.
        part: That function, for errors.
        spec: Names the task in errors.

    Raises:
        TaskError: it is not a module that can be pruned.
    """
    if isinstance(model, torch.export.ExportedProgram):
        raise TaskError(
            f"{spec}: {part} returned a torch.export program, whose channels cannot be pruned and trained. Return the "
            "nn.Module that it was exported from, with its state_dict loaded; or export the program to ONNX and build "
            "from the .onnx file."
        )
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise TaskError(
            f"{spec}: {part} returned a TorchScript module, which cannot be pruned. Build the Python class and load "
            "its state_dict: `model = MyNetwork(); model.load_state_dict(scripted.state_dict())`."
        )
    if isinstance(model, Mapping):
        raise TaskError(
            f"{spec}: {part} returned a {type(model).__name__} with {len(model)} entries, such as a state_dict or a "
            "checkpoint, not a torch.nn.Module. Build the module and call its load_state_dict()."
        )
    if not isinstance(model, nn.Module):
        raise TaskError(f"{spec}: {part} returned {type(model).__name__}, not a torch.nn.Module.")
    while True:
        inner: Any = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else None
        )
        if not isinstance(inner, nn.Module):
            break
        model = inner
    ready: nn.Module = model.eval().cpu()
    return without_inference_tensors(ready)


def without_inference_tensors(module: nn.Module) -> nn.Module:
    """Return a module that autograd takes: a copy if it was made under ``torch.inference_mode``, else itself."""
    if not any(value.is_inference() for value in (*module.parameters(), *module.buffers())):
        return module
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_inference():
                part._parameters[name] = nn.Parameter(parameter.clone(), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()
    return copied


def narrow_types(module: nn.Module) -> set[torch.dtype]:
    """Return the half-precision types of a module's parameters and buffers."""
    return {value.dtype for value in (*module.parameters(), *module.buffers())} & set(NARROW_TYPES)


def is_double(module: nn.Module) -> bool:
    """Tell whether all weights of a module are float64: part of one may be so for a reason."""
    types = {value.dtype for value in module.parameters() if value.is_floating_point()}
    return types == {torch.float64}


def in_float32(module: nn.Module) -> nn.Module:
    """Return a float32 copy of a module in half precision or in float64, or the module itself.

    Weights of half precision keep their values exactly, others are rounded.
    """
    return copy.deepcopy(module).float() if narrow_types(module) or is_double(module) else module


def widen_inputs(value: Tensor) -> Tensor:
    """Return an input of half precision in float32; others stay."""
    return value.float() if value.dtype in NARROW_TYPES else value


def doubles_in_float32(value: Any) -> Any:
    """Return a tensor or array of half precision or float64 as a tensor in float32; others stay."""
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.dtype in (*NARROW_TYPES, torch.float64) else value


def describe_rounding(exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> list[str]:
    """Return a note on each output that is clearly another one in float32 than in float64.

    Args:
        exact: Outputs in float64.
        rounded: In float32, of the same shapes.
    """
    notes = []
    for index, (one, other) in enumerate(zip(exact, rounded, strict=True)):
        largest = float(one.abs().max()) if one.is_floating_point() and one.numel() else 0.0
        error = float((one - other).abs().max()) / largest if largest else 0.0
        if error > _ROUNDING_TOLERANCE:
            notes.append(
                f"in float32, output {index} of the model is off by {error:.2g} of its largest value: subtract what is "
                "large in its inputs, such as the first of a series of times, before they reach the model"
            )
    return notes


@contextmanager
def flat_forward(model: nn.Module, layout: InputLayout) -> Iterator[nn.Module]:
    """Let ``forward`` of a model take and return flat tuples of tensors, for the length of a block.

    The names of its parameters stay the same, as they would not in a wrapper.
    """
    forward: Callable[..., Any] = model.forward

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(layout.call(forward, leaves)))

    with replaced_forward(model, call):
        yield model


@contextmanager
def replaced_forward(model: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """Let a model compute ``call`` for the length of a block."""
    own = model.__dict__.get("forward")
    object.__setattr__(model, "forward", call)
    try:
        yield
    finally:
        object.__delattr__(model, "forward")
        if own is not None:
            object.__setattr__(model, "forward", own)

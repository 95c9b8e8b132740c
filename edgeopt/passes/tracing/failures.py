"""Why ``torch.export`` refuses a model, and what to write instead.

A message of torch.export names a symbol of its solver; the user needs to know which statement it cannot record. This
is read from the exception, the line of code that raised it, and the values in its frames.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
_MAX_CHARACTERS = 300

_PACKED = (
    "its recurrent layer runs on a packed sequence, which cannot be exported. Give the layer the padded sequences, and "
    "choose the last step of each by its length."
)
_CAUSAL_MASK = (
    "PyTorch reads the values of an attention mask to see whether it is causal. Say so in the call: tgt_is_causal=True "
    "for nn.TransformerDecoder (memory_is_causal for memory_mask), is_causal=True for nn.TransformerEncoder; False if "
    "the mask is not causal."
)
_BRANCH = (
    "it branches on the values of a tensor, and a graph has no branches. Compute both results, and choose with "
    "torch.where(condition, a, b)."
)
_LOOP = (
    "it repeats a loop until values tell it to stop. Give the loop a fixed number of turns, and keep what is finished "
    "with torch.where(done, old, new)."
)
_NUMBER = (
    "it takes a number out of a tensor (int(), float(), item(), tolist(), range() or a slice) and needs its value. Use "
    "a size such as x.shape[1] or a constant of __init__, keep the number a tensor, or compute the full length and "
    "mask the rest with torch.where."
)
_ASSERTION = (
    "it asserts something about the values of a tensor. Check the data before they reach the model, and leave the "
    "assertion out of forward()."
)
_SHAPE = (
    "the shape of a result depends on values, as for x[x > 0], nonzero() and unique(). Keep the full shape: choose "
    "with torch.where(mask, x, 0), and take means as sums divided by mask.sum()."
)
_NUMPY = (
    "it turns a tensor into a NumPy array, and NumPy's work cannot be recorded. Use PyTorch's functions on tensors "
    "(most have the same names), or do this part in the data's preparation."
)
_CONSTANT = (
    "it makes a new tensor of computed values outside of the graph, as .data, torch.tensor(x) and a list of numbers "
    "do. Use x.detach() for .data, and torch.stack() or x.clone() for the others."
)
_SCRIPT = (
    "it holds TorchScript, whose code cannot be recorded. Build the Python class in its place, and load its "
    "state_dict()."
)
_OPERATOR = (
    "it calls an operator whose shapes cannot be inferred, such as a custom or a sparse one. Write this part with "
    "PyTorch's dense operators; a custom operator would be missing in ONNX Runtime too."
)
_QUANTIZED = (
    "it holds layers that PyTorch has quantized, which cannot be recorded or trained. Return the float model: edgeopt "
    "quantizes its file."
)
_OUTPUT = "forward() returns an object that is not made of tensors. Return tensors, or tuples, lists and dicts of them."
_GRADIENT = "it computes gradients in forward(). Write the derivative out with PyTorch's operators, or leave it out."
_FIXED_SIZE = (
    "it turns a dynamic size into a Python number, as len(x) and int(x.shape[0]) do. Write x.shape[0], or -1 in "
    "reshape() and expand()."
)
_OTHER = (
    "Write this step with PyTorch's operators on tensors. `torch.export.export(model, inputs, strict=False)` fails "
    "likewise without edgeopt."
)
_BY_MESSAGE = (
    (r"\.numpy\(\) is not supported|can't convert .*numpy|__array__|Can't call numpy\(\)", _NUMPY),
    (r"fake tensor in the exported program constant", _CONSTANT),
    (r"no fake impl|fake impl(ementation)? registered|UnsupportedOperatorException", _OPERATOR),
    (r"in output, which is not a known type", _OUTPUT),
    (r"FakeTensor\.__format__", _NUMBER),
    (r"Constraints violated|specialized it to be a constant|inferred to be a constant", _FIXED_SIZE),
)


class TraceFailure(NamedTuple):
    """Why a model cannot be exported."""

    reason: str
    """Sentences that follow ``torch.export cannot export NAME:``."""
    trace: str
    """The traceback, and whatever torch.export printed."""


def explain_failure(model: nn.Module, error: BaseException, printed: str = "") -> TraceFailure:
    """Return why ``torch.export`` failed on a model, in words.

    Args:
        model: The model.
        error: What it raised.
        printed: What it wrote to stderr: the graph so far.
    """
    trace = "".join((*traceback.format_exception(error), printed))
    return TraceFailure(_find_reason(model, error), trace)


def _find_reason(model: nn.Module, error: BaseException) -> str:
    message = f"{type(error).__name__}: {str(error).strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    if any(isinstance(value, PackedSequence) for value in _local_values(error)):
        return _PACKED
    if any(frame.name == "_detect_is_causal_mask" for frame in frames):
        return _CAUSAL_MASK
    if "data-dependent" in message or "DataDependent" in message:
        line = next((frame.line or "" for frame in reversed(frames) if _is_outside(frame.filename)), "").strip()
        return _explain_dependence(line, message)
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        return _SCRIPT
    if any(".quantized." in type(part).__module__ for part in model.modules()):
        return _QUANTIZED
    reason = next((reason for pattern, reason in _BY_MESSAGE if re.search(pattern, message)), None)
    if reason is _CONSTANT and any(_computes_gradients(part) for part in model.modules()):
        return _GRADIENT
    first = " ".join(message.splitlines()[0].split()).partition(". ")[0]
    return reason or f"{first[:_MAX_CHARACTERS].removesuffix('.')}. {_OTHER}"


def _computes_gradients(part: nn.Module) -> bool:
    code = getattr(type(part).forward, "__code__", None)
    return code is not None and bool({"grad", "backward"} & set(code.co_names))


def _explain_dependence(line: str, message: str) -> str:
    """Return what is wrong with a line of code that needs the value of a tensor."""
    if re.search(r"Size-like symbols: [a-z]+\d", message):
        return _SHAPE
    if line.startswith("while "):
        return _LOOP
    if line.startswith("assert "):
        return _ASSERTION
    if re.search(r"\b(int|float|range)\(|\.item\(\)|\.tolist\(\)", line):
        return _NUMBER
    if re.search(r"\b(if|elif|bool|and|or|not|any|all|max|min)\b", line):
        return _BRANCH
    return _NUMBER


def _local_values(error: BaseException) -> Iterator[Any]:
    return (value for frame, _ in traceback.walk_tb(error.__traceback__) for value in frame.f_locals.values())


def _is_outside(file: str) -> bool:
    return not file.startswith((*_LIBRARIES, "<"))

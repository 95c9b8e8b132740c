"""A trace compared with the module that it was made from: outputs on the example inputs, and on another batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgeopt.errors import StepError
from edgeopt.passes.prune.float64 import Float64Interpreter, new_tensors_in_float64, to_float64
from edgeopt.passes.training_run import restored_state
from edgeopt.task.dynamic_axes import BATCH, AxisNames

_TOLERANCE = 1e-3
"""Largest error of an output, over its largest absolute value. Kernels differ where an operator was decomposed."""
_HALF_TOLERANCE = 3e-2
"""The same for networks that compute in 16 bits."""
_EXACT_TOLERANCE = 1e-7
"""The same in float64."""
_SAME_ANSWERS_RATIO = 0.99
"""Of integers and truth values, which rounding may turn where two values are nearly equal."""
_OTHER_SCALE = 0.5
"""Of the values of the other batch: numbers that a trace took from the examples do not fit these."""
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError, AssertionError)
"""Of user code that does not take the other batch."""
_Run = Callable[..., Any]


def compare_with_model(
    model: nn.Module, module: fx.GraphModule, inputs: Sequence[Tensor], axes: AxisNames, *, is_batch_dynamic: bool
) -> tuple[str, ...]:
    """Run a model and its trace on the example inputs and on another batch, and compare their outputs.

    The other batch has the rows in reverse order, values half as large, and one row more if the batch is dynamic. It is
    left out if the model does not take it.

    Args:
        model: The user's module, in evaluation mode; its buffers and attributes are restored.
        module: The traced graph.
        inputs: Those of the trace.
        axes: The dynamic dimensions of each input.
        is_batch_dynamic: Whether the graph takes batches of any size.

    Returns:
        A note if the model cannot be compared, because two runs of it differ, or differs from its trace by rounding.

    Raises:
        StepError: an output differs.
    """
    other = tuple(_other_rows(value, dims, is_batch_dynamic) for value, dims in zip(inputs, axes, strict=True))
    for batch, name in ((tuple(inputs), "the example inputs"), (other, "another batch")):
        try:
            expected = _run(model, model, batch)
        except _FAILURES:
            continue
        try:
            found = _run(model, module, batch)
        except _FAILURES as error:
            problem = f"does not run on {name} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        else:
            problem = _describe_difference(expected, found)
            problem = problem and f"differs from it on {name}: {problem}"
        if not problem:
            continue
        if _describe_difference(expected, _run(model, model, batch)):
            return ("two runs of the model in evaluation mode differ, so its trace could not be compared with it",)
        if _agree_in_float64(model, module, batch):
            return (f"the trace differs from the model by rounding: {problem}; in float64 they agree",)
        raise StepError(
            "trace",
            f"the graph that torch.export made of {type(model).__name__} {problem}. It may have recorded a value that "
            "forward() computes outside of PyTorch's operators or keeps between calls, or a tensor that is "
            "overwritten while a view of it is in use. Write that part with tensor operators that return new tensors.",
        )
    return ()


def _agree_in_float64(model: nn.Module, module: fx.GraphModule, batch: Sequence[Tensor]) -> bool:
    """Tell whether model and trace agree in float64: rounding may turn a choice between two nearly equal values."""
    inputs = [to_float64(value) for value in batch]
    try:
        with new_tensors_in_float64():
            exact = to_float64(model)
            expected, found = _run(exact, exact, inputs), _run(exact, Float64Interpreter(module).run, inputs)
    except _FAILURES:
        return False
    return not _describe_difference(expected, found, _EXACT_TOLERANCE)


def _other_rows(value: Tensor, dims: Any, is_batch_dynamic: bool) -> Tensor:
    axis = next((dim for dim, name in dims.items() if name == BATCH), None)
    if axis is not None:
        rows = list(reversed(range(value.shape[axis])))
        value = value.index_select(axis, torch.tensor(rows + rows[:1] if is_batch_dynamic else rows))
    return value * _OTHER_SCALE if value.is_floating_point() else value.clone()


def _run(model: nn.Module, run: _Run, batch: Sequence[Tensor]) -> list[Tensor]:
    """Run the model or its trace as the trace was made: without the fused path of transformers."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with restored_state(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(*(value.clone() for value in batch))
            return [value.detach().clone() for value in pytree.tree_leaves(found) if isinstance(value, Tensor)]
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _describe_difference(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float | None = None) -> str:
    """Return the first difference that matters, or an empty text. ``tolerance`` replaces that of the outputs' type."""
    if len(expected) != len(found):
        return f"{len(found)} outputs instead of {len(expected)}"
    for index, (old, new) in enumerate(zip(expected, found, strict=True)):
        if old.shape != new.shape:
            return f"output {index} has shape {tuple(new.shape)} instead of {tuple(old.shape)}"
        if not old.is_floating_point() and not old.is_complex():
            same = float((old == new).double().mean()) if old.numel() else 1.0
            if same < _SAME_ANSWERS_RATIO:
                return f"{1 - same:.0%} of output {index} differ"
            continue
        finite = old.isfinite()
        same_places = torch.equal(finite, new.isfinite())
        if not same_places or not torch.equal(old[~finite].nan_to_num(0), new[~finite].nan_to_num(0)):
            return f"output {index} has other values that are not finite"
        error = _relative_error(old[finite], new[finite])
        usual = _TOLERANCE if torch.finfo(old.dtype).bits > 16 else _HALF_TOLERANCE
        if error > (usual if tolerance is None else tolerance):
            return f"output {index} is off by {error:.2g} of its largest value"
    return ""


def _relative_error(old: Tensor, new: Tensor) -> float:
    if not old.numel():
        return 0.0
    exact = torch.complex128 if old.is_complex() else torch.float64
    largest = float(old.to(exact).abs().max())
    return float((old.to(exact) - new.to(exact)).abs().max()) / (largest or 1.0)

"""Gradients that a model's ``torch.autograd.Function``s define, which a trace does not keep."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

from edgeopt.passes.training_run import MODEL_FAILURES, restored_state

_logger = logging.getLogger(__name__)
_TOLERANCE = 1e-2
"""Largest difference of a parameter's gradient, over its largest value. Rounding stays far below; a gradient that is
passed straight through where the operator's own is zero differs by 1."""
_SEED = 0


def find_changed_gradients(
    model: nn.Module, module: nn.Module, inputs: Sequence[Tensor]
) -> tuple[list[str], list[str]]:
    """Compare the gradients of a model and of its trace, if the model has functions with a gradient of their own.

    Args:
        model: The user's module, in evaluation mode; its attributes and buffers are restored.
        module: The trace, with parameters of the same names.
        inputs: Those of the trace.

    Returns:
        The names of the functions, and of the parameters that get another gradient in the trace; both are empty if
        none does, or if one of the two has no gradient here: a function may have no ``backward`` or one for another
        processor, and what writes in place may run in evaluation only. A training says so better than a trace.
    """
    try:
        with restored_state(model), torch.enable_grad(), warnings.catch_warnings(), _same_random_numbers():
            warnings.simplefilter("ignore")
            outputs = _float_outputs(model, inputs)
            functions = sorted({name for output in outputs for name in _own_functions(output)})
            expected = _gradients(model, outputs) if functions else {}
        if not expected:
            return [], []
        with restored_state(module), torch.enable_grad(), _same_random_numbers():
            found = _gradients(module, _float_outputs(module, inputs))
    except MODEL_FAILURES as error:
        _logger.debug("%s has no gradients to compare: %s", type(model).__name__, error)
        return [], []
    changed = [name for name, one in expected.items() if name in found and _differs(one, found[name])]
    return (functions, changed) if changed else ([], [])


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


def _float_outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs that may have a gradient; in a trace, one of steps such as ``x > 0`` has none."""
    outputs = pytree.tree_leaves(model(*(value.clone() for value in inputs)))
    return [value for value in outputs if isinstance(value, Tensor) and value.is_floating_point()]


def _own_functions(output: Tensor) -> Iterator[str]:
    """Yield the names of the ``torch.autograd.Function``s that an output was computed with."""
    waiting = [] if output.grad_fn is None else [output.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        assert node is not None, "only nodes are collected"
        if isinstance(node, BackwardCFunction):
            yield type(node).__name__.removesuffix("Backward")
        following = {source for source, _ in node.next_functions if source is not None} - seen
        seen |= following
        waiting += following


def _gradients(model: nn.Module, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the gradient of a fixed sum of the outputs for each parameter that the model trains."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    generator = torch.Generator().manual_seed(_SEED)
    weighted = [output * torch.rand(output.shape, generator=generator).to(output) for output in outputs]
    total = sum((value.sum().float() for value in weighted), torch.zeros(()))
    if not total.requires_grad:
        return {name: torch.zeros_like(value) for name, value in parameters.items()}
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
    }


def _differs(expected: Tensor, found: Tensor) -> bool:
    largest = max(float(expected.abs().max()), float(found.abs().max()))
    return float((expected - found).abs().max()) > _TOLERANCE * largest

"""One run of a module in training or in evaluation mode, and what happened in it."""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from edgeopt.passes.aten import aten

MODEL_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError, AssertionError)
"""Of user code that does not run in a mode, or has no gradient in it."""
_FINISHING = {
    aten._softmax: "softmax", aten._log_softmax: "log_softmax", aten.sigmoid: "sigmoid", aten.tanh: "tanh",
    aten.argmax: "argmax", aten.topk: "topk", aten.exp: "exp", aten.clamp: "clamp",
}  # fmt: skip
_CONTAINERS = (list, dict, OrderedDict, set)
_CALL_NUMBER = re.compile(r"@\d+$")


class TrainingRun(NamedTuple):
    """What happened in one run of a module."""

    shapes: tuple[tuple[int, ...], ...]
    """Of the outputs, flat."""
    called: frozenset[str]
    """Submodules that ran, by path."""
    random: Counter[str]
    """How many random operators each submodule ran itself, by path."""
    finishing: Counter[str]
    """How many operators ran that often finish an output only in evaluation, such as softmax."""
    attention_dropouts: tuple[float, ...]
    """The dropout of each scaled dot product attention, in order."""
    shapes_read: dict[str, tuple[int, ...]]
    """The shape of the first input of each submodule that ran."""
    trained: frozenset[str]
    """Parameters that an output's gradient reaches, by each of their names; not looked for in evaluation mode."""
    updated: frozenset[str]
    """Buffers of floating point whose values changed."""


def run_module(model: nn.Module, inputs: Sequence[Tensor]) -> TrainingRun:
    """Run a module in the mode that it is in; its attributes, buffers and the random state are restored.

    Args:
        model: Any module.
        inputs: Positional inputs.
    """
    path: list[str] = []
    called: set[str] = set()
    random: Counter[str] = Counter()
    finishing: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}

    def enter(name: str, args: tuple[Any, ...]) -> None:
        path.append(name)
        called.add(name)
        if args and isinstance(args[0], Tensor):
            shapes.setdefault(name, tuple(args[0].shape))

    def leave(*_: Any) -> None:
        path.pop()

    with restored_state(model) as buffers, torch.random.fork_rng(devices=[]), contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name, part in _python_modules(model):
            before = part.register_forward_pre_hook(lambda _, args, name=name: enter(name, args))
            after = part.register_forward_hook(leave, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        dropouts = stack.enter_context(_attention_dropouts())
        stack.enter_context(torch.enable_grad())
        with _CountedOperators(random, finishing, path):
            found = model(*(value.clone() for value in inputs))
        outputs = [value for value in pytree.tree_leaves(found) if isinstance(value, Tensor)]
        trained = _reached_parameters(model, outputs) if model.training else frozenset()
        updated = {
            name
            for name, (now, before_values) in buffers().items()
            if now.is_floating_point() and not torch.equal(now, before_values)
        }
    return TrainingRun(
        shapes=tuple(tuple(value.shape) for value in outputs), called=frozenset(called), random=random,
        finishing=finishing, attention_dropouts=tuple(dropouts), shapes_read=shapes, trained=trained,
        updated=frozenset(updated),
    )  # fmt: skip


def _python_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules with their paths; those of TorchScript take no hooks, and are refused later."""
    return ((name, part) for name, part in model.named_modules() if not isinstance(part, torch.jit.ScriptModule))


def module_path(node: torch.fx.Node) -> str:
    """Return the path of the submodule that a node of a trace came from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return _CALL_NUMBER.sub("", str(stack[-1][0])) if stack else ""


def is_random(target: Any) -> bool:
    """Tell whether an operator draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


class _CountedOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts random operators by the submodule that runs them, and those that finish outputs."""

    def __init__(self, random: Counter[str], finishing: Counter[str], path: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.random, self.finishing, self.path = random, finishing, path

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fused_attention = "scaled_dot_product" in func.name()  # draws nothing: a dropout takes another one
        if is_random(func) and not fused_attention:
            self.random[self.path[-1] if self.path else ""] += 1
        if func.overloadpacket in _FINISHING:
            self.finishing[_FINISHING[func.overloadpacket]] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _attention_dropouts() -> Iterator[list[float]]:
    """Record the dropout of each scaled dot product attention, for the length of a block."""
    original: Any = functional.scaled_dot_product_attention
    found: list[float] = []

    def attention(*args: Any, **kwargs: Any) -> Any:
        found.append(float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)))
        return original(*args, **kwargs)

    functional.scaled_dot_product_attention = attention
    try:
        yield found
    finally:
        functional.scaled_dot_product_attention = original


@contextlib.contextmanager
def restored_state(model: nn.Module) -> Iterator[Any]:
    """Give a model's attributes and buffers their values back after a block.

    Yields a function that returns each buffer as it is now and as it was.
    """
    attributes = [(part, dict(part.__dict__), _copy_containers(part)) for _, part in _python_modules(model)]
    values = {name: value.detach().clone() for name, value in model.named_buffers()}
    try:
        yield lambda: {name: (now.detach(), values[name]) for name, now in model.named_buffers() if name in values}
    finally:
        for part, before, contents in attributes:
            part.__dict__.clear()
            part.__dict__.update(before)
            for name, content in contents.items():
                _refill(before[name], content)
        with torch.no_grad():
            for name, value in model.named_buffers():
                if not torch.equal(value, values[name]):  # an expanded buffer cannot be written
                    value.copy_(values[name])


def _copy_containers(part: nn.Module) -> dict[str, Any]:
    """Return copies of a module's lists, dicts and sets, by attribute."""
    return {name: copy.copy(value) for name, value in part.__dict__.items() if type(value) in _CONTAINERS}


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


def _reached_parameters(model: nn.Module, outputs: Sequence[Tensor]) -> frozenset[str]:
    """Return the names of the parameters at the ends of the outputs' gradient graph; no gradient is computed."""
    waiting = [value.grad_fn for value in outputs if value.grad_fn is not None]
    seen = set(waiting)
    reached = set()
    while waiting:
        node = waiting.pop()
        reached.add(id(getattr(node, "variable", None)))
        following = {source for source, _ in node.next_functions if source is not None} - seen
        seen |= following
        waiting += following
    return frozenset(name for name, value in model.named_parameters(remove_duplicate=False) if id(value) in reached)

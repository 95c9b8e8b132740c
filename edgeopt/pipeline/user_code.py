"""The user's task with every call guarded: an exception in it becomes a ``TaskError`` with the user's file and line.

In: a task's name. Out: a ``CheckedTask`` whose calls of the user's methods go through ``run_user_code``. Exceptions of
libraries that edgeopt calls itself stay what they are, so that the two are never mistaken for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from edgeopt.errors import DivergedError, TaskError
from edgeopt.pipeline.boundary import run_user_code
from edgeopt.task import CheckedTask, load_task

_BATCHES = "_batches"
_LOSSES = ("loss", "distill_loss", "training_step")
_SCORES = ("score", "sample_scores")


def load_guarded_task(spec: str) -> CheckedTask:
    """Load a user's task, and guard every call of its methods.

    Raises:
        TaskError: see ``edgeopt.task.load_task``; or the user's code failed.
    """
    with _GradientMode():
        task = run_user_code(spec, "loading the task", load_task, spec)
    task.task = GuardedTask(task.task, spec)
    task.students = {name: _guard(spec, f"students['{name}']()", make) for name, make in task.students.items()}
    return task


class GuardedTask:
    """Stands in for the user's object; its methods raise ``TaskError`` for whatever the user's raise.

    The user's object itself stays as it is: loaders may hold it, and pickle it.
    """

    def __init__(self, task: Any, spec: str) -> None:
        self._task = task
        self._spec = spec

    def __getattr__(self, name: str) -> Any:
        if name in ("_task", "_spec"):  # not set yet, as in a copy that is being made
            raise AttributeError(name)
        if name == "source_module":
            return getattr(self._task, name, None) or type(self._task).__module__
        value = getattr(self._task, name)
        if not callable(value) or isinstance(value, type | nn.Module):
            return value
        part = f"{name}()"
        guarded = _guard(self._spec, part, value)
        if name.endswith(_BATCHES):
            return lambda *args: _guard_batches(self._spec, part, guarded(*args))
        if name in _LOSSES:
            return lambda *args: _check_loss(self._spec, part, guarded(*args), args)
        if name in _SCORES:
            return _guard_score(part, guarded)
        return guarded


def _guard(spec: str, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with _GradientMode():
            return run_user_code(spec, part, function, *args, **kwargs)

    return guarded


class _GradientMode:
    """Keeps the gradient mode of user code apart from edgeopt's, which is as before after each block.

    User code may turn gradients off for good, or yield a batch inside ``torch.no_grad()``. Code that yields finds its
    own mode again in the next block.
    """

    def __init__(self) -> None:
        self._theirs: bool | None = None

    def __enter__(self) -> None:
        self._ours = torch.is_grad_enabled()
        if self._theirs is not None:
            torch.set_grad_enabled(self._theirs)

    def __exit__(self, *_: object) -> None:
        self._theirs = torch.is_grad_enabled()
        torch.set_grad_enabled(self._ours)


class GuardedBatches:
    """Batches of the user's, whose iteration may run the user's code too."""

    def __init__(self, spec: str, part: str, batches: Any) -> None:
        self._spec = spec
        self._part = part
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __bool__(self) -> bool:
        return True  # not every loader has a length

    def __iter__(self) -> Iterator[Any]:
        _catch_up(self._batches)
        mode, end = _GradientMode(), object()
        with mode:
            iterator = run_user_code(self._spec, self._part, iter, self._batches)
        while True:
            with mode:
                batch = run_user_code(self._spec, self._part, next, iterator, end)
            if batch is end:
                return
            yield batch


def _catch_up(batches: Any) -> None:
    """Draw the number that a new iteration of a ``DataLoader`` draws, if its workers stay from an earlier one.

    Such a loader draws it only the first time. Without this, the order of shuffled batches would depend on that, and
    differ from that of a loader without workers.

    Args:
        batches: A loader, or what stands before it and keeps it as ``loader``.
    """
    loader = getattr(batches, "loader", batches)
    if isinstance(loader, DataLoader) and getattr(loader, "_iterator", None) is not None:
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)


def _guard_batches(spec: str, part: str, batches: Any) -> Any:
    return batches if batches is None or isinstance(batches, list | tuple) else GuardedBatches(spec, part, batches)


def _check_loss(spec: str, part: str, loss: Any, args: tuple[Any, ...]) -> Any:
    """Return a loss that can be trained on.

    Raises:
        TaskError: it is not a tensor with one element, or does not depend on the outputs.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
        raise TaskError(f"task '{spec}': {part} has to return a tensor with one element, not {found}.")
    trained = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(args[:1]))
    if trained and torch.is_grad_enabled() and not loss.requires_grad:
        raise TaskError(
            f"task '{spec}': {part} returned a tensor that does not depend on the outputs it was given, so nothing can "
            "be trained. Compute it with PyTorch from the outputs, without .detach(), .numpy() or torch.no_grad()."
        )
    return loss


def _guard_score(part: str, score: Callable[..., Any]) -> Callable[..., Any]:
    """Return a score whose failure on outputs that are not finite is a ``DivergedError``: the user's code is right."""

    def guarded(pairs: Any) -> Any:
        try:
            value = score(pairs)
        except TaskError as error:
            if _are_finite(pairs) and _expects_tensors(error):
                raise TaskError(f"{error} Outputs and targets are numpy arrays here.") from error
            if _are_finite(pairs):
                raise
            raise _not_finite(f"{part} cannot be computed for them") from error
        if not _are_finite(value) and not _are_finite(pairs):
            raise _not_finite(f"{part} of them is not finite either")
        return value

    return guarded


def _expects_tensors(error: TaskError) -> bool:
    """Tell whether a score failed because it used PyTorch's functions on numpy arrays."""
    return any(words in str(error) for words in ("'numpy.", "keyword argument 'dim'", "must be Tensor"))


def _not_finite(consequence: str) -> DivergedError:
    return DivergedError("score", f"the outputs are not finite (NaN or infinity), and {consequence}")


def _are_finite(value: Any) -> bool:
    """Tell whether all floating-point numbers in a value, or in outputs (the first of each pair), are finite."""
    if isinstance(value, list | tuple) and value and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        value = [outputs for outputs, _ in value]
    if isinstance(value, Mapping):
        value = dict(value)
    return all(_is_finite(leaf) for leaf in pytree.tree_leaves(value))


def _is_finite(leaf: Any) -> bool:
    if not isinstance(leaf, np.ndarray | np.generic | float | int):
        return True
    array = np.asarray(leaf)
    return not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array).all())

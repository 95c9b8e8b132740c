"""Importance: one score for each channel of each free group; channels with high scores are kept.

In: a ``Network``, its groups and, for most methods, training batches. Out: scores by group. A method scores each *slot*
of a channel (its rows of one tensor), a reduction combines these into one score, and a normalization makes groups
comparable:

    conv1.weight rows ── 0.8 ─┐
    bn1.weight entries ─ 0.1 ─┼─ sum ── 1.2 ── divided by the group's mean ── 1.7
    conv2.weight columns 0.3 ─┘
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeopt.errors import DivergedError, InputError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Group, Groups
from edgeopt.passes.prune.interpret import execute, read_name, tensor_names
from edgeopt.passes.prune.labels import Integers, Slot
from edgeopt.passes.prune.routing import routing_shares
from edgeopt.passes.safe_gradients import take_stride_out
from edgeopt.records.recipe import Importance, ImportanceMethod

_Floats = npt.NDArray[np.float64]
Scores = dict[str, _Floats]
_Batch = tuple[Any, Any]
"""Inputs (a tensor or a tuple of them) and targets."""
_Loss = Callable[[Any, Any], Tensor]
SlotScore = Callable[[Slot, Integers], _Floats | None]
"""Scores the channels of one slot: ``(channels, indices per channel)`` to ``(channels,)``. None if the method does not
score that tensor."""

NEEDS_BATCHES: tuple[ImportanceMethod, ...] = ("taylor", "gradient", "hessian", "activation")
_REDUCTIONS: dict[str, Callable[[_Floats], _Floats]] = {
    "sum": lambda slots: slots.sum(0),
    "mean": lambda slots: slots.mean(0),
    "max": lambda slots: slots.max(0),
}
_NORMALIZATIONS: dict[str, Callable[[_Floats], float]] = {
    "none": lambda _: 1.0,
    "mean": lambda score: float(score.mean()),
    "max": lambda score: float(score.max()),
}


def score_channels(
    network: Network,
    groups: Groups,
    rule: Importance,
    batches: Iterable[_Batch] | None = None,
    loss: _Loss | None = None,
) -> Scores:
    """Score every channel of the free groups.

    The score of a slot, with ``w`` its weights and ``g`` their gradients on one batch:

    ``l1``, ``l2``: the norm of ``w`` (Li et al., 2017).
    ``batch-norm``: ``|w|`` of batch norms only (Liu et al., 2017, network slimming); groups without one use ``l2``.
    ``gradient``: the mean over batches of the sum of ``|g|``.
    ``taylor``: the mean over batches of ``|sum of g * w|`` (Molchanov et al., 2019, equation 8), the first-order change
    of the loss. The absolute value is taken per batch, because at the end of a training the gradients of all batches
    cancel out.
    ``hessian``: half the sum of ``w² * h`` (LeCun et al., 1990, OBD). ``h`` is the diagonal of the empirical Fisher
    information (the mean over batches of ``g²``), in place of the Hessian's.
    ``activation``: for weights that read the channel, their L2 norm times that of the channel's activation (Sun et
    al., 2023); other slots have no score.
    ``random``: a control.

    Of channels that a softmax weighs or ``topk`` picks from, such as experts, the group's score is shared out by how
    much each gets on the batches (``edgeopt.passes.prune.routing``), for the methods that have batches.

    Args:
        network: The network that ``groups`` was made from; its tensors are not changed.
        groups: The result of ``analyse``.
        rule: Method, reduction and normalization.
        batches: Pairs of inputs and targets, for the methods in ``NEEDS_BATCHES``.
        loss: Function of outputs and targets, for the same methods.

    Returns:
        Group name to one score per channel.

    Raises:
        InputError: the method needs batches or a loss and there are none.
        DivergedError: the loss or its gradient is not finite.
    """
    if rule.method in NEEDS_BATCHES and (batches is None or loss is None):
        raise InputError(f"Importance '{rule.method}' needs training batches and a loss; pass both, or use 'l2'.")
    batches = list(batches or ()) if rule.method in NEEDS_BATCHES else []
    shares = routing_shares(network, groups, (as_inputs(inputs) for inputs, _ in batches))
    score = _make_slot_score(network, groups, rule.method, batches, loss)
    norms = _norm_score(network, groups, 2)
    scores: Scores = {}
    for name, group in groups.free.items():
        if rule.method == "random":
            scores[name] = np.random.RandomState(zlib.crc32(name.encode())).rand(group.channels)
            continue
        slots = _score_slots(group, score) or _score_slots(group, norms)
        reduced = _REDUCTIONS[rule.reduction](np.stack(slots)) if slots else np.zeros(group.channels)
        if name in shares:
            reduced = reduced.sum() * shares[name]
        scale = _NORMALIZATIONS[rule.normalization](reduced)
        scores[name] = reduced / scale if scale > 0 else reduced
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise DivergedError("prune", "the loss or its gradient is not finite on the training batches; check the model.")
    return scores


def choose_strongest(
    scores: Mapping[str, Sequence[float] | _Floats], widths: Mapping[str, int]
) -> dict[str, list[int]]:
    """Choose the ``widths[group]`` channels with the highest scores in each group, in their old order."""
    order = {name: np.argsort(-np.asarray(scores[name]), kind="stable") for name in widths}
    return {name: sorted(order[name][:width].tolist()) for name, width in widths.items()}


def _score_slots(group: Group, score: SlotScore) -> list[_Floats]:
    """Return the scores of the slots that a method scores."""
    return [part for slot, indices in group.slots.items() if (part := score(slot, indices)) is not None]


def _make_slot_score(
    network: Network, groups: Groups, method: ImportanceMethod, batches: Iterable[_Batch], loss: _Loss | None
) -> SlotScore:
    match method:
        case "l1":
            return _norm_score(network, groups, 1)
        case "l2":
            return _norm_score(network, groups, 2)
        case "batch-norm":
            return _batch_norm_score(network, groups)
        case "activation":
            return _activation_score(network, groups, batches)
        case "random":
            return lambda slot, indices: None
        case _:
            assert loss is not None
            return _gradient_score(network, groups, method, batches, loss)


def _sum_rows(values: Tensor, dim: int) -> _Floats:
    """Sum a tensor over all dimensions but ``dim``."""
    rows = values.movedim(dim, 0).reshape(values.shape[dim], -1)
    return np.asarray(rows.sum(1, dtype=torch.float64).numpy())


def _scored_tensors(network: Network, groups: Groups) -> dict[str, Tensor]:
    """Return the parameters, and the buffers of groups without a parameter, such as the waves of a Fourier transform.

    Without a score of their own, the channels of such a group would all seem to be worth nothing.
    """
    parameters = network.parameters()
    without = [group for group in groups.free.values() if not any(name in parameters for name, _ in group.slots)]
    names = {name for group in without for name, _ in group.slots}
    buffers = {name: attrgetter(name)(network.eval_module) for name in sorted(names)}
    buffers = {name: tensor for name, tensor in buffers.items() if tensor.is_floating_point()}
    return {**parameters, **buffers}


def _norm_score(network: Network, groups: Groups, power: int) -> SlotScore:
    weights = _scored_tensors(network, groups)

    def score(slot: Slot, indices: Integers) -> _Floats | None:
        name, dim = slot
        if name not in weights:
            return None
        terms = weights[name].detach().abs().pow(power)  # of one tensor at a time: all would be another network
        sums: _Floats = _sum_rows(terms, dim)[indices].sum(1) ** (1 / power)
        return sums

    return score


def _find_nodes(network: Network, operator: str) -> list[Any]:
    return [
        node
        for node in network.eval_module.graph.nodes
        if getattr(getattr(node.target, "overloadpacket", None), "__name__", "") == operator
    ]


def _batch_norm_score(network: Network, groups: Groups) -> SlotScore:
    names = tensor_names(network.eval_module)
    scales = {read_name(names, node.args[1]) for node in _find_nodes(network, "batch_norm")}
    norms = _norm_score(network, groups, 1)
    return lambda slot, indices: norms(slot, indices) if slot[0] in scales else None


def _gradient_score(
    network: Network, groups: Groups, method: ImportanceMethod, batches: Iterable[_Batch], loss: _Loss
) -> SlotScore:
    scored, parameters = _scored_tensors(network, groups), network.parameters()
    buffers = [tensor for name, tensor in scored.items() if name not in parameters]
    trained = {name: tensor for name, tensor in scored.items() if name not in parameters or tensor.requires_grad}
    slots = {slot for group in groups.free.values() for slot in group.slots if slot[0] in trained}
    rows: dict[Slot, list[_Floats]] = {slot: [] for slot in slots}
    module = take_stride_out(network.eval_module)

    def add_and_drop(name: str, weight: Tensor) -> None:
        """Add a gradient's sums as soon as it is there: those of all weights would be another network."""
        assert weight.grad is not None
        values = _weight_terms(method, weight.grad, weight.detach())
        weight.grad = None
        for dim in range(weight.dim()):
            if (name, dim) in rows:
                rows[name, dim].append(_sum_rows(values, dim))

    for tensor in buffers:
        tensor.requires_grad_()
    hooks = [
        weight.register_post_accumulate_grad_hook(partial(add_and_drop, name))  # type: ignore[no-untyped-call]
        for name, weight in trained.items()
    ]
    is_empty = True
    try:
        for inputs, targets in batches:
            is_empty = False
            loss(module(*as_inputs(inputs)), targets).backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
        for tensor in buffers:
            tensor.requires_grad_(False)
    if rows and is_empty:
        raise InputError(f"Importance '{method}' got no batches; pass at least one.")

    def score(slot: Slot, indices: Integers) -> _Floats | None:
        if not rows.get(slot):
            return None
        sums: _Floats = np.mean([np.abs(row[indices].sum(1)) for row in rows[slot]], axis=0)
        return sums

    return score


def _weight_terms(method: ImportanceMethod, gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the term of each weight in the method's sum over a slot."""
    match method:
        case "gradient":
            return gradient.abs()
        case "taylor":
            return gradient * weight
        case _:
            return gradient.square() * weight.square() / 2


_READERS = {"conv1d": 1, "conv2d": 1, "conv3d": 1, "convolution": 1, "linear": -1}
"""Operators whose weight reads the input's channels along dimension 1, and the channel dimension of the input."""


def _activation_score(network: Network, groups: Groups, batches: Iterable[_Batch]) -> SlotScore:
    names = tensor_names(network.eval_module)
    readers: dict[Any, list[tuple[str, int]]] = {}
    for operator, dim in _READERS.items():
        for node in _find_nodes(network, operator):
            if (name := read_name(names, node.args[1])) is not None:
                readers.setdefault(node.args[0], []).append((name, dim))
    squares: dict[str, _Floats] = {}
    for inputs, _ in batches:
        for node, value in execute(network.eval_module, as_inputs(inputs)):
            for name, dim in readers.get(node, ()):
                squares[name] = squares.get(name, 0.0) + _sum_rows(value.square(), dim % value.dim())
    if not squares:
        raise InputError("Importance 'activation' got no batches, or the network has no convolution or linear layer.")
    norm = _norm_score(network, groups, 2)
    shapes = {name: parameter.shape for name, parameter in network.parameters().items()}

    def score(slot: Slot, indices: Integers) -> _Floats | None:
        name, dim = slot
        weight = norm(slot, indices)
        if dim != 1 or name not in squares or weight is None:
            return None
        # an index of a grouped convolution reads one channel of every group
        by_group = squares[name].reshape(-1, shapes[name][1]).sum(0)
        product: _Floats = weight * np.sqrt(by_group[indices].sum(1))
        return product

    return score


def as_inputs(inputs: Any) -> tuple[Tensor, ...]:
    """Return a batch's inputs as a tuple."""
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)

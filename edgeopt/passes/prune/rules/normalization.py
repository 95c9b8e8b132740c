"""Norms, other operators with one parameter per channel, and look-up tables."""

from __future__ import annotations

from typing import Any

from edgeopt.passes.aten import aten
from edgeopt.passes.prune.labels import Labels, Marked
from edgeopt.passes.prune.rules.call import Call, Layers, Rule
from edgeopt.passes.prune.rules.elementwise import make_independent, match, split


def per_channel(labels: Labels, call: Call) -> Layers:
    """Match parameters that are vectors along dimension 1 of the input: batch norm, PReLU."""
    x, *parameters = call.operands
    return match(labels, [x, *(_along_channels(parameter, len(x.shape)) for parameter in parameters)], call.shape)


def instance_norm(labels: Labels, call: Call) -> Layers:
    """Freeze labels along positions, over which the statistics are computed."""
    labels.freeze([layer for layer in call.input.layers if any(size > 1 for size in layer.shape[2:])])
    return per_channel(labels, call)


def layer_norm(labels: Labels, call: Call) -> Layers:
    """Match input and parameters: the norm over the kept channels is a smaller norm of the same kind."""
    return match(labels, call.operands, call.shape)


def group_norm(labels: Labels, call: Call) -> Layers:
    """Keep the number of groups: the j-th channel goes from all groups together. Groups of one channel may go."""
    groups = int(call["num_groups"])
    layers = make_independent(labels, call.input.layers, set(range(2, len(call.shape))))
    for layer in layers:
        if layer.shape[1] > 1 and groups < call.shape[1]:
            labels.tie(split(layer, 1, (groups, -1)), 1)
    return per_channel(labels, call.with_input(layers))


def embedding_bag(labels: Labels, call: Call) -> list[Layers]:
    """Sums, means or maxima of rows of ``weight``: rows stay, columns are channels."""
    call.freeze_others(labels)
    rows = Marked(call["weight"].shape, make_independent(labels, call["weight"].layers, {0}, "rows of a look-up table"))
    has_channels = [len(shape) == 2 and shape[1] == rows.shape[1] for shape in call.shape]
    return [rows.layers if has else () for has in has_channels]


def weight_norm(labels: Labels, call: Call) -> Layers:
    """``v * g / norm(v)``, with the norm over all dimensions but ``dim``: zeros do not change it."""
    return match(labels, [call["v"], call["g"]], call.shape)


def embedding(labels: Labels, call: Call) -> Layers:
    """``weight[indices]``: rows stay, because the inputs refer to them by number; columns are channels."""
    weight, indices = call["weight"], call["indices"]
    labels.freeze(indices.layers)
    columns = []
    for layer in weight.layers:
        if layer.shape[0] > 1:
            labels.freeze(layer, "rows of a look-up table")
        else:
            columns.append(layer.reshape([1] * len(indices.shape) + [-1]))
    return tuple(columns)


def _along_channels(parameter: Marked, ndim: int) -> Marked:
    size = parameter.shape[0] if parameter.shape else 1
    shape = (size, *[1] * (ndim - 2))
    return Marked(shape, tuple(layer.reshape(shape) for layer in parameter.layers))


RULES: dict[Any, Rule] = {
    aten.batch_norm: per_channel,
    aten.prelu: per_channel,
    aten.rms_norm: layer_norm,
    aten._weight_norm: weight_norm,
    aten.instance_norm: instance_norm,
    aten.layer_norm: layer_norm,
    aten.group_norm: group_norm,
    aten.embedding: embedding,
    **dict.fromkeys((aten.embedding_bag, aten._embedding_bag, aten._embedding_bag_forward_only), embedding_bag),
}

"""``reconstruct``: after a cut, the weights that are left are fitted to what each layer computed before it.

A layer that lost inputs computes something else, and so does all that follows. From the first layer to the last, the
weights take over, by least squares, what the inputs that are left can tell (He, Zhang and Sun, 2017, "Channel pruning
for accelerating very deep neural networks", section 3.1). Each layer reads what the fitted ones before it give, so
errors do not add up. It takes no labels and no training, and a training that starts from it needs fewer steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from edgeopt.passes.aten import aten
from edgeopt.passes.network import Network
from edgeopt.passes.prune.interpret import tensor_names
from edgeopt.passes.prune.labels import Slot
from edgeopt.passes.reconstruct.layers import (
    FittableLayer,
    count_readers,
    find_fittable_layers,
    input_rows,
    output_rows,
    position_sizes,
)

_MAX_ROWS, _LEAST_ROWS_PER_COLUMN = 32768, 2
"""Positions that are compared: as many as the work allows."""
_MAX_MULTIPLICATIONS = 2e10
"""Of a layer's equations."""
_MAX_ROW_BYTES = 128_000_000
_MAX_COLUMNS = 4608
"""A layer with more is not fitted."""
_RIDGE, _LEAST_RIDGE = 0.03, 1e-3
"""How strongly a weight is held where it is, over the mean square of its input, and over that of all inputs. Without
it, inputs that are nearly alike get large weights of both signs, which the first steps of a training tear apart."""
_NORM_TENSORS = 4
_EXACT_RATIO = 1e-5
_SAME_RATIO = 1e-3
"""Of the largest output: runs that are further apart than that draw random numbers."""
_MAX_TARGET_BYTES = 512_000_000
"""Of what all layers computed, at the positions that are compared."""
_HELD_OUT_RATIO = 0.25
_MAX_VALUE_BYTES = 256_000_000
"""Of the largest value in the graph, over all batches."""

_Inputs = tuple[Tensor, ...]


class _Target(NamedTuple):
    """What a layer computed in one batch, at some positions, in the channels that are left."""

    positions: Tensor
    values: Tensor
    sizes: tuple[int, ...]
    """Of all dimensions of the output but its channels."""


def affordable_samples(network: Network, most: int, examples: int, larger: float = 1.0) -> int:
    """Return how many samples may be in memory at once: at least one, at most ``most``.

    Args:
        network: The network.
        most: The largest answer.
        examples: Samples of its example inputs.
        larger: Size of a sample over that of an example.
    """
    computed = [network.shapes()[node.name] for node in network.eval_module.graph.nodes if node.op == "call_function"]
    largest = 4 * max(map(_count_values, computed), default=0) * larger / examples
    return max(1, min(most, int(_MAX_VALUE_BYTES / max(1.0, largest))))


def _count_values(shape: Any) -> int:
    """Return the number of values of a tensor's shape, or of a list of shapes; a plain number has none."""
    if isinstance(shape, list):
        return sum(map(_count_values, shape))
    return math.prod(shape) if isinstance(shape, tuple) else 0


def reconstruct(before: Network, after: Network, batches: Sequence[_Inputs], seed: int = 0) -> int:
    """Fit the weights of a network that was cut to what its layers computed before the cut.

    Args:
        before: The network that was cut.
        after: The result of its ``cut``; its weights are changed in place.
        batches: Inputs; all of them are in memory at once.
        seed: For the positions that are compared.

    Returns:
        How many layers are now closer to what they computed, at positions that did not fit them.
    """
    whole, names = find_fittable_layers(before.eval_module), tensor_names(before.eval_module)
    found = find_fittable_layers(after.eval_module)
    layers = {name: found[name] for name in found if name in whole and found[name].columns <= _MAX_COLUMNS}
    if not layers or not _repeats(before.eval_module, batches[0]):
        return 0
    random = torch.Generator().manual_seed(seed)
    channels = sum(layer.weight.shape[0] for layer in layers.values())
    most = max(1, _MAX_TARGET_BYTES // (4 * channels))
    targets: dict[str, list[_Target]] = {}
    readers = count_readers(after.eval_module)
    fitted = 0

    def keep(node: fx.Node, outputs: list[Tensor]) -> None:
        if node.name in layers and not _has_samples(whole[node.name], outputs[0]):
            del layers[node.name]
        elif node.name in layers:
            layer = whole[node.name]
            left = _kept_rows(before, after, (names[layer.weight_path], 0))
            count = -(-min(most, _count_rows(layers[node.name])) // len(outputs))
            targets[node.name] = [_sample(layer, output, count, left, random) for output in outputs]

    def fit(node: fx.Node, arguments: list[tuple[Any, ...]]) -> None:
        nonlocal fitted
        if node.name in layers:
            found = targets.pop(node.name)
            layer, inputs = layers[node.name], [one[0] for one in arguments]
            # a cut along other dimensions than the channels, as of a layer over transposed values, moves the positions
            if all(position_sizes(layer, x) == one.sizes for x, one in zip(inputs, found, strict=True)):
                fitted += _fit(layer, inputs, found)
        elif getattr(node.target, "overloadpacket", None) is aten.batch_norm:
            own = [one for one in node.args[1:5] if isinstance(one, fx.Node) and one.op == "get_attr"]
            if len(own) == _NORM_TENSORS and all(readers[str(one.target)] == 1 for one in own):
                _center(arguments)

    with torch.no_grad():
        _run(before.eval_module, batches, computed=keep)
        _run(after.eval_module, batches, reached=fit)
    return fitted


def _repeats(module: fx.GraphModule, inputs: _Inputs) -> bool:
    """Tell whether a network computes the same twice."""
    first, second = (pytree.tree_leaves(module(*(value.clone() for value in inputs))) for _ in range(2))
    return all(
        bool((one - other).abs().max() <= _SAME_RATIO * one.abs().max())
        for one, other in zip(first, second, strict=True)
        if one.is_floating_point() and one.numel()
    )


def _has_samples(layer: FittableLayer, output: Tensor) -> bool:
    """Tell whether what a layer computes has more dimensions than one sample needs."""
    return output.dim() == layer.weight.dim() if layer.window is not None else output.dim() > 1


def _run(
    module: fx.GraphModule,
    batches: Sequence[_Inputs],
    reached: Callable[[fx.Node, list[tuple[Any, ...]]], None] | None = None,
    computed: Callable[[fx.Node, list[Any]], None] | None = None,
) -> None:
    """Compute each node for all batches before the next one; tell its arguments, or what it gave."""
    runs = [fx.Interpreter(module) for _ in batches]
    for run, inputs in zip(runs, batches, strict=True):
        run.args_iter = iter([value.clone() for value in inputs])  # some models write into their inputs
    for node in module.graph.nodes:
        if reached is not None:
            reached(node, [run.fetch_args_kwargs_from_env(node)[0] for run in runs])
        for run in runs:
            run.env[node] = run.run_node(node)
        if computed is not None:
            computed(node, [run.env[node] for run in runs])
        for run in runs:
            for gone in run.user_to_last_uses.get(node, ()):
                del run.env[gone]


def _kept_rows(before: Network, after: Network, slot: Slot) -> Tensor | None:
    """Return the indices that a cut left in one dimension of a tensor; None for all."""
    if slot not in after.kept:
        return None
    left = after.kept[slot]
    return torch.as_tensor(np.searchsorted(before.kept[slot], left) if slot in before.kept else left)


def _count_rows(layer: FittableLayer) -> int:
    """Return at how many positions a layer is compared."""
    affordable = max(
        _LEAST_ROWS_PER_COLUMN * layer.columns, int(_MAX_MULTIPLICATIONS / layer.columns**2 / layer.groups)
    )
    in_memory = _MAX_ROW_BYTES // (4 * layer.columns * layer.groups)
    return max(1, min(_MAX_ROWS, affordable, in_memory))


def _sample(layer: FittableLayer, output: Tensor, count: int, left: Tensor | None, random: torch.Generator) -> _Target:
    """Return what a layer computes at random positions."""
    rows = output_rows(layer, output)
    positions = torch.randperm(len(rows), generator=random)[:count]
    values = rows[positions] if left is None else rows[positions][:, left]
    return _Target(
        positions,
        values,
        (output.shape[0], *output.shape[2:]) if layer.window is not None else tuple(output.shape[:-1]),
    )


def _fit(layer: FittableLayer, inputs: Sequence[Tensor], targets: Sequence[_Target]) -> bool:
    """Change weight and bias of a layer, if that brings it closer at positions that did not fit them."""
    read = torch.cat(
        [input_rows(layer, x, target.sizes[1:], target.positions) for x, target in zip(inputs, targets, strict=True)],
        dim=1,
    )
    wanted = torch.cat([target.values for target in targets])
    wanted = wanted.reshape(len(wanted), layer.groups, -1).transpose(0, 1)
    old = layer.weight.reshape(layer.groups, layer.weight.shape[0] // layer.groups, -1).transpose(1, 2)
    if layer.bias is not None:
        read = torch.cat([read, torch.ones_like(read[:, :, :1])], 2)
        old = torch.cat([old, layer.bias.reshape(layer.groups, 1, -1)], 1)
    missing = wanted - read @ old
    if float(missing.norm()) <= _EXACT_RATIO * float(wanted.norm()):
        return False  # it lost nothing
    order = torch.randperm(read.shape[1], generator=torch.Generator().manual_seed(0))
    held, fitting = order.tensor_split([max(1, int(len(order) * _HELD_OUT_RATIO))])
    change = _solve(read[:, fitting], missing[:, fitting]).to(old.dtype)
    after = missing[:, held] - read[:, held] @ change
    if not bool(after.square().sum() < missing[:, held].square().sum()):
        return False
    new = (old + change).transpose(1, 2)
    if layer.bias is not None:
        layer.bias.copy_(new[:, :, -1].reshape(layer.bias.shape))
        new = new[:, :, :-1]
    layer.weight.copy_(new.reshape(layer.weight.shape))
    return True


def _center(arguments: Sequence[tuple[Any, ...]]) -> None:
    """Give a batch norm the statistics of its inputs, and a scale and a bias with which it computes the same.

    In training it then computes nearly what it computes in inference, for which its layer was fitted.
    """
    _, scale, bias, mean, variance, *_, epsilon, _ = arguments[0]
    values = torch.cat([x.transpose(0, 1).flatten(1) for x, *_ in arguments], 1).double()
    found, spread = values.mean(1), values.var(1, correction=0)
    slope = scale.double() / torch.sqrt(variance.double() + epsilon)
    bias.copy_(bias + slope * (found - mean))
    scale.copy_(slope * torch.sqrt(spread + epsilon))
    mean.copy_(found)
    variance.copy_(spread)


def _solve(read: Tensor, missing: Tensor) -> Tensor:
    """Return the change of the weights that gives what is missing with the least squared error, and stays small."""
    products = (read.transpose(1, 2) @ read).double()
    squares = products.diagonal(dim1=1, dim2=2).clone()
    least = _LEAST_RIDGE * squares.mean(1, keepdim=True).clamp_min(1e-12)
    products += torch.diag_embed(_RIDGE * squares + least)
    change: Tensor = torch.linalg.solve(products, (read.transpose(1, 2) @ missing).double())
    return change

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

from edgeopt.passes.network import Network
from edgeopt.passes.prune.interpret import tensor_names
from edgeopt.passes.prune.labels import Slot
from edgeopt.passes.reconstruct.layers import FittableLayer, find_fittable_layers, input_rows, output_rows

_MAX_ROWS, _LEAST_ROWS_PER_COLUMN = 32768, 2
"""Positions that are compared: as many as the work allows."""
_MAX_MULTIPLICATIONS = 2e10
"""Of a layer's equations."""
_MAX_ROW_BYTES = 128_000_000
_MAX_COLUMNS = 4608
"""A layer with more is not fitted."""
_RIDGE = 1e-3
"""Over the mean square of a layer's inputs: how strongly weights are held where they are."""
_HELD_OUT_RATIO = 0.25
_MAX_VALUE_BYTES = 256_000_000
"""Of the largest value in the graph, over all batches."""

_Inputs = tuple[Tensor, ...]


class _Target(NamedTuple):
    """What a layer computed in one batch, at some positions, in the channels that are left."""

    positions: Tensor
    values: Tensor
    output_sizes: tuple[int, ...]
    """Of the spatial dimensions."""


def affordable_samples(network: Network, most: int) -> int:
    """Return how many samples may be in memory at once: at least one, at most ``most``."""
    examples = max(1, network.example_inputs[0].shape[0]) if network.example_inputs[0].dim() else 1
    computed = [network.shapes()[node.name] for node in network.eval_module.graph.nodes if node.op == "call_function"]
    largest = 4 * max(map(_count_values, computed), default=0) / examples
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
    random = torch.Generator().manual_seed(seed)
    targets: dict[str, list[_Target]] = {}
    fitted = 0

    def keep(node: fx.Node, outputs: list[Tensor]) -> None:
        if node.name in layers:
            layer = whole[node.name]
            left = _kept_rows(before, after, (names[layer.weight_path], 0))
            count = -(-_count_rows(layers[node.name]) // len(outputs))
            targets[node.name] = [_sample(layer, output, count, left, random) for output in outputs]

    def fit(node: fx.Node, arguments: list[tuple[Any, ...]]) -> None:
        nonlocal fitted
        if node.name in layers:
            found = targets.pop(node.name)
            inputs = [one[0] for one in arguments]
            fitted += _fit(layers[node.name], inputs, found)

    with torch.no_grad():
        _run(before.eval_module, batches, computed=keep)
        _run(after.eval_module, batches, reached=fit)
    return fitted


def _run(
    module: fx.GraphModule,
    batches: Sequence[_Inputs],
    reached: Callable[[fx.Node, list[tuple[Any, ...]]], None] | None = None,
    computed: Callable[[fx.Node, list[Any]], None] | None = None,
) -> None:
    """Compute each node for all batches before the next one; tell its arguments, or what it gave."""
    runs = [fx.Interpreter(module) for _ in batches]
    for run, inputs in zip(runs, batches, strict=True):
        run.args_iter = iter(inputs)
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
    return _Target(positions, values, tuple(output.shape[2:]) if layer.window is not None else ())


def _fit(layer: FittableLayer, inputs: Sequence[Tensor], targets: Sequence[_Target]) -> bool:
    """Change weight and bias of a layer, if that brings it closer at positions that did not fit them."""
    read = torch.cat(
        [
            input_rows(layer, x, target.output_sizes, target.positions)
            for x, target in zip(inputs, targets, strict=True)
        ],
        dim=1,
    )
    wanted = torch.cat([target.values for target in targets])
    wanted = wanted.reshape(len(wanted), layer.groups, -1).transpose(0, 1)
    old = layer.weight.reshape(layer.groups, layer.weight.shape[0] // layer.groups, -1).transpose(1, 2)
    if layer.bias is not None:
        read = torch.cat([read, torch.ones_like(read[:, :, :1])], 2)
        old = torch.cat([old, layer.bias.reshape(layer.groups, 1, -1)], 1)
    missing = wanted - read @ old
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


def _solve(read: Tensor, missing: Tensor) -> Tensor:
    """Return the change of the weights that gives what is missing with the least squared error, and stays small."""
    products = (read.transpose(1, 2) @ read).double()
    ridge = _RIDGE * products.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    products += ridge[:, None, None] * torch.eye(products.shape[-1], dtype=products.dtype)
    change: Tensor = torch.linalg.solve(products, (read.transpose(1, 2) @ missing).double())
    return change

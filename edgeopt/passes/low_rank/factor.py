"""Pairs of small layers that lose least of what large ones answer to training batches.

A layer computes ``y = x M`` on every patch ``x`` of its input. Of all matrices of rank r, ``M V V'`` loses least of
``y`` over the batches, with V the r main directions of the answers: the leading eigenvectors of the sum of ``y' y``
(Zhang et al., 2016, "Accelerating very deep convolutional networks"). The first layer is ``M V``, the second ``V'``;
nothing has to be inverted. For the separable form, whose second layer reads a row of positions, the answers of single
columns of the kernel stand for ``y``: the loss that is reported is always that of the layer's real output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeopt.errors import StepError
from edgeopt.passes.low_rank.layers import (
    FactorizableLayer,
    as_matrix,
    as_pair,
    factorizable_layers,
    pair_geometry,
    pair_shapes,
)
from edgeopt.passes.network import Network
from edgeopt.passes.prune.importance import as_inputs
from edgeopt.passes.prune.interpret import execute
from edgeopt.records.low_rank import Factorization, FactorizationForm, LowRankChoice, LowRankLayer, LowRankTable

MAX_SAMPLES = 1024
"""Training samples whose answers are looked at."""
HELD_BACK = 32
"""Samples of the last batch on which a pair's loss is measured."""
RIDGE = 1e-3
"""Weight of directions that no batch uses, over the mean of those used: with few samples, few are."""
LEAST_WEIGHTS = 4096
"""Smaller layers keep their form: there is nothing to gain."""
SMALLER = 0.75
"""Two layers are considered where they have at most this share of the one's weights."""

Answers = dict[str, dict[FactorizationForm, Tensor]]


@dataclass
class LayerStatistics:
    """What batches said of the layers of one network."""

    layers: dict[str, FactorizableLayer]
    weights: dict[str, Tensor]
    directions: dict[tuple[str, FactorizationForm], Tensor]
    """Orthonormal columns, the main one first."""
    inputs: dict[str, Tensor]
    """Held back: what each layer reads."""

    def pair(self, name: str, factor: Factorization) -> tuple[Tensor, Tensor]:
        """Return the two weights of a layer, in its own type; both share the scale of each channel between them."""
        layer = self.layers[name]
        across = self.directions[name, factor.form][:, : factor.rank]
        first = as_matrix(self.weights[name].double(), factor.form) @ across
        scale = first.norm(dim=0).clamp_min(1e-12).sqrt()
        pair = as_pair(first / scale, (across * scale).T, layer, factor.form)
        kind = self.weights[name].dtype
        return pair[0].to(kind).contiguous(), pair[1].to(kind).contiguous()

    def loss_ratio(self, name: str, factor: Factorization) -> float:
        """Return the squared error of a layer's output on the inputs held back, over the output's variance."""
        layer, inputs = self.layers[name], self.inputs[name]
        expected = run_layer(layer, inputs, self.weights[name], layer.geometry)
        first, second = self.pair(name, factor)
        before, after = pair_geometry(layer, factor.form) if layer.spatial else ((), ())
        error = run_layer(layer, run_layer(layer, inputs, first, before), second, after) - expected
        dims = [dim for dim in range(expected.dim()) if dim != _channels(layer, expected)]
        variance = (expected - expected.mean(dims, keepdim=True)).square().sum()
        return float(error.square().sum() / variance.clamp_min(1e-30))


def run_layer(layer: FactorizableLayer, inputs: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> Tensor:
    """Apply a weight as the layer does, without its bias."""
    if layer.spatial == 0:
        return F.linear(inputs, weight)
    convolution = F.conv1d if layer.spatial == 1 else F.conv2d
    return convolution(inputs, weight, None, *geometry)


def _channels(layer: FactorizableLayer, value: Tensor) -> int:
    return 1 if layer.spatial else value.dim() - 1


def collect_statistics(
    network: Network, batches: Iterable[Any], only: Mapping[str, Factorization] | None = None
) -> LayerStatistics:
    """Run training batches and find the main directions of what every layer answers.

    Args:
        network: The network; it is left as it is.
        batches: Pairs of inputs and targets; the first ``MAX_SAMPLES`` samples count.
        only: The layers and forms wanted; None for all that are large enough.

    Raises:
        StepError: a layer is wanted that the network does not have.
    """
    found = factorizable_layers(network.eval_module)
    if only is not None and not only.keys() <= found.keys():
        raise StepError("low-rank", f"the network has no layer {sorted(only.keys() - found.keys())}; factor it anew.")
    wanted = {
        name: layer
        for name, layer in found.items()
        if (name in only if only is not None else torch.Size(layer.shape).numel() >= LEAST_WEIGHTS)
    }
    weights = {name: network.parameters()[name].detach() for name in wanted}
    forms = {name: (only[name].form,) if only is not None else wanted[name].forms for name in wanted}
    sums: dict[tuple[str, FactorizationForm], Tensor] = {}
    inputs: dict[str, Tensor] = {}
    reads = {layer.node.args[0]: [] for layer in wanted.values()}  # type: ignore[var-annotated]
    for name, layer in wanted.items():
        reads[layer.node.args[0]].append(name)
    samples = 0
    for batch, _ in batches:
        count = len(as_inputs(batch)[0])
        for node, value in execute(network.eval_module, as_inputs(batch)):
            for name in reads.get(node, ()):
                inputs[name] = value[: max(1, HELD_BACK * len(value) // count)].clone()
                for form in forms[name]:
                    answers = _answers(wanted[name], value, weights[name], form)
                    sums[name, form] = sums.get((name, form), 0.0) + (answers.T @ answers).double()
        samples += count
        if samples >= MAX_SAMPLES:
            break
    directions = {}
    for (name, form), gram in sums.items():
        matrix = as_matrix(weights[name].double(), form)
        plain = matrix.T @ matrix
        unused = RIDGE * gram.trace() / plain.trace().clamp_min(1e-30) * plain
        directions[name, form] = torch.linalg.eigh(gram + unused).eigenvectors.flip(1)
    return LayerStatistics(wanted, weights, directions, inputs)


def _answers(layer: FactorizableLayer, inputs: Tensor, weight: Tensor, form: FactorizationForm) -> Tensor:
    """Return what the columns of the layer's matrix answer, ``(patches, columns)``."""
    if form == "separable":
        matrix = as_matrix(weight, form)
        columns = matrix.T.reshape(matrix.shape[1], layer.shape[1], layer.kernel[0], 1)
        (before, _) = pair_geometry(layer, form)
        return run_layer(layer, inputs, columns, before).transpose(0, 1).flatten(1).T
    output = run_layer(layer, inputs, weight, layer.geometry)
    return output.movedim(_channels(layer, output), -1).flatten(0, -2)


def low_rank_table(network: Network, batches: Iterable[Any], losses: tuple[float, ...], step: int) -> LowRankTable:
    """Find for every large layer the smallest pair for each allowed loss of its output.

    Args:
        network: The network.
        batches: Pairs of inputs and targets.
        losses: What of a layer's output may be lost: squared error over variance.
        step: Ranks are multiples of it.
    """
    found = collect_statistics(network, batches)
    with torch.no_grad():
        rows = tuple(
            LowRankLayer(
                weight=name,
                shape=layer.shape,
                input_shape=tuple(found.inputs[name].shape[1:]),
                stride=layer.geometry[0] if layer.spatial else (),
                padding=layer.geometry[1] if layer.spatial else (),
                dilation=layer.geometry[2] if layer.spatial else (),
                choices=tuple(_smallest(found, name, loss, step) for loss in losses),
            )
            for name, layer in found.layers.items()
            if name in found.inputs
        )
    return LowRankTable(
        parameters=sum(value.numel() for value in network.parameters().values()), losses=losses, layers=rows
    )


def _smallest(found: LayerStatistics, name: str, loss: float, step: int) -> LowRankChoice | None:
    """Return the form and the rank with the fewest weights, by bisection over multiples of ``step``."""
    layer = found.layers[name]
    limit = SMALLER * torch.Size(layer.shape).numel()
    best: LowRankChoice | None = None
    for form in layer.forms:
        cost = _parameters(layer, Factorization(rank=1, form=form))
        low, high = 0, int(min(limit, limit if best is None else best.parameters - 1) // (cost * step))
        while low < high:  # the smallest multiple in (low, high] that keeps the loss, if ``high`` does
            middle = (low + high) // 2 if low or high > 1 else high
            middle = max(middle, low + 1)
            factor = Factorization(rank=middle * step, form=form)
            lost = found.loss_ratio(name, factor)
            if lost <= loss:
                best = LowRankChoice(factor=factor, output_loss_ratio=lost, parameters=cost * factor.rank)
                high = middle - 1
            else:
                low = middle
    return best


def _parameters(layer: FactorizableLayer, factor: Factorization) -> int:
    return sum(torch.Size(shape).numel() for shape in pair_shapes(layer.shape, factor))


def factorize(network: Network, factors: Mapping[str, Factorization], batches: Iterable[Any]) -> Network:
    """Return the network with these layers as two; the network given is left as it is.

    Raises:
        StepError: the network has no such layer.
    """
    found = collect_statistics(network, batches, factors)
    return network.factorized(factors, {name: found.pair(name, one) for name, one in factors.items()})

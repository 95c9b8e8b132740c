"""Factorize large layers into pairs of small ones that keep the outputs on training batches as close as possible.

In: a ``Network``, training batches and a rank for each layer. Out: the factorized ``Network``, or a table of the
smallest pairs for several losses.

A layer computes ``y = x M`` on every patch ``x`` of its input. Of all matrices of rank r, ``M V V'`` gives the smallest
squared error of ``y`` over the batches, if the columns of V are the r principal directions of the outputs: the leading
eigenvectors of the sum of ``y' y`` (Zhang et al., 2016, "Accelerating very deep convolutional networks"). The first
layer is ``M V``, the second ``V'``; nothing has to be inverted. In the separable form the second layer reads a row of
positions, so there ``y`` is the output of single kernel columns. The reported loss is always that of the layer's real
output.
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

_MAX_SAMPLES = 1024
"""Training samples from which the directions are computed."""
_HELD_BACK_SAMPLES = 32
"""Samples of the last batch on which the loss of a pair is measured."""
_RIDGE_RATIO = 1e-3
"""Trace of the ridge term over that of the batches. It ranks directions that no batch uses; few samples use few."""
_MIN_WEIGHTS = 4096
"""Smaller layers are not factorized: there is nothing to gain."""
_MAX_PARAMETERS_RATIO = 0.75
"""A pair may have at most this share of the weights of the layer that it replaces."""


@dataclass
class LayerStatistics:
    """Statistics of the layers of one network, collected over batches."""

    layers: dict[str, FactorizableLayer]
    weights: dict[str, Tensor]
    directions: dict[tuple[str, FactorizationForm], Tensor]
    """Orthonormal columns, most important first."""
    inputs: dict[str, Tensor]
    """The input of each layer on the held-back samples."""

    def factorize_weight(self, name: str, factorization: Factorization) -> tuple[Tensor, Tensor]:
        """Return the two weights that replace one, in its dtype; both have the same scale in each middle channel."""
        layer = self.layers[name]
        directions = self.directions[name, factorization.form][:, : factorization.rank]
        first = as_matrix(self.weights[name].double(), factorization.form) @ directions
        scale = first.norm(dim=0).clamp_min(1e-12).sqrt()
        first, second = as_pair(first / scale, (directions * scale).T, layer, factorization.form)
        dtype = self.weights[name].dtype
        return first.to(dtype).contiguous(), second.to(dtype).contiguous()

    def measure_loss_ratio(self, name: str, factorization: Factorization) -> float:
        """Return the squared error of a layer's output over its variance, on the held-back inputs."""
        layer, inputs = self.layers[name], self.inputs[name]
        expected = run_layer(layer, inputs, self.weights[name], layer.geometry)
        first, second = self.factorize_weight(name, factorization)
        before, after = pair_geometry(layer, factorization.form) if layer.spatial else ((), ())
        error = run_layer(layer, run_layer(layer, inputs, first, before), second, after) - expected
        dims = [dim for dim in range(expected.dim()) if dim != _channel_dim(layer, expected)]
        variance = (expected - expected.mean(dims, keepdim=True)).square().sum()
        return float(error.square().sum() / variance.clamp_min(1e-30))


def run_layer(layer: FactorizableLayer, inputs: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> Tensor:
    """Apply a weight as the layer does, without the bias."""
    if layer.spatial == 0:
        return F.linear(inputs, weight)
    convolution = F.conv1d if layer.spatial == 1 else F.conv2d
    return convolution(inputs, weight, None, *geometry)


def _channel_dim(layer: FactorizableLayer, value: Tensor) -> int:
    return 1 if layer.spatial else value.dim() - 1


def collect_statistics(
    network: Network, batches: Iterable[Any], only: Mapping[str, Factorization] | None = None
) -> LayerStatistics:
    """Run training batches and find the principal directions of every layer's output.

    Args:
        network: The network; it is not changed.
        batches: Pairs of inputs and targets; the first ``_MAX_SAMPLES`` samples are used.
        only: The layers and forms wanted; None for all layers that are large enough.

    Raises:
        StepError: the network does not have one of the layers.
    """
    layers = factorizable_layers(network.eval_module)
    if only is not None and not only.keys() <= layers.keys():
        raise StepError(
            "low-rank", f"the network has no layer {sorted(only.keys() - layers.keys())}; factorize it again."
        )
    wanted = {
        name: layer
        for name, layer in layers.items()
        if (name in only if only is not None else torch.Size(layer.shape).numel() >= _MIN_WEIGHTS)
    }
    weights = {name: network.parameters()[name].detach() for name in wanted}
    forms = {name: (only[name].form,) if only is not None else wanted[name].forms for name in wanted}
    sums: dict[tuple[str, FactorizationForm], Tensor] = {}
    inputs: dict[str, Tensor] = {}
    readers: dict[Any, list[str]] = {layer.node.args[0]: [] for layer in wanted.values()}
    for name, layer in wanted.items():
        readers[layer.node.args[0]].append(name)
    samples = 0
    for batch, _ in batches:
        count = len(as_inputs(batch)[0])
        for node, value in execute(network.eval_module, as_inputs(batch)):
            for name in readers.get(node, ()):
                inputs[name] = value[: max(1, _HELD_BACK_SAMPLES * len(value) // count)].clone()
                for form in forms[name]:
                    outputs = _column_outputs(wanted[name], value, weights[name], form)
                    sums[name, form] = sums.get((name, form), 0.0) + (outputs.T @ outputs).double()
        samples += count
        if samples >= _MAX_SAMPLES:
            break
    directions = {}
    for (name, form), gram in sums.items():
        matrix = as_matrix(weights[name].double(), form)
        unweighted = matrix.T @ matrix
        ridge = _RIDGE_RATIO * gram.trace() / unweighted.trace().clamp_min(1e-30) * unweighted
        directions[name, form] = torch.linalg.eigh(gram + ridge).eigenvectors.flip(1)
    return LayerStatistics(wanted, weights, directions, inputs)


def _column_outputs(layer: FactorizableLayer, inputs: Tensor, weight: Tensor, form: FactorizationForm) -> Tensor:
    """Return the outputs for each column of the layer's matrix, ``(patches, columns)``."""
    if form == "separable":
        matrix = as_matrix(weight, form)
        columns = matrix.T.reshape(matrix.shape[1], layer.shape[1], layer.kernel[0], 1)
        (before, _) = pair_geometry(layer, form)
        return run_layer(layer, inputs, columns, before).transpose(0, 1).flatten(1).T
    output = run_layer(layer, inputs, weight, layer.geometry)
    return output.movedim(_channel_dim(layer, output), -1).flatten(0, -2)


def build_low_rank_table(
    network: Network, batches: Iterable[Any], losses: tuple[float, ...], step: int
) -> LowRankTable:
    """Find, for every large layer and each allowed loss of its output, the smallest pair.

    Args:
        network: The network.
        batches: Pairs of inputs and targets.
        losses: Allowed losses of a layer's output: squared error over variance.
        step: Ranks are multiples of this.
    """
    statistics = collect_statistics(network, batches)
    with torch.no_grad():
        rows = tuple(
            LowRankLayer(
                weight=name,
                shape=layer.shape,
                input_shape=tuple(statistics.inputs[name].shape[1:]),
                stride=layer.geometry[0] if layer.spatial else (),
                padding=layer.geometry[1] if layer.spatial else (),
                dilation=layer.geometry[2] if layer.spatial else (),
                choices=tuple(_find_smallest(statistics, name, loss, step) for loss in losses),
            )
            for name, layer in statistics.layers.items()
            if name in statistics.inputs
        )
    return LowRankTable(
        parameters=sum(value.numel() for value in network.parameters().values()), losses=losses, layers=rows
    )


def _find_smallest(statistics: LayerStatistics, name: str, loss: float, step: int) -> LowRankChoice | None:
    """Return the form and rank with the fewest weights, by bisection over multiples of ``step``; None if none fits."""
    layer = statistics.layers[name]
    limit = _MAX_PARAMETERS_RATIO * torch.Size(layer.shape).numel()
    best: LowRankChoice | None = None
    for form in layer.forms:
        cost = _count_parameters(layer, Factorization(rank=1, form=form))
        low, high = 0, int(min(limit, limit if best is None else best.parameters - 1) // (cost * step))
        while low < high:  # the smallest multiple in (low, high] that keeps the loss, if ``high`` does
            middle = (low + high) // 2 if low or high > 1 else high
            middle = max(middle, low + 1)
            candidate = Factorization(rank=middle * step, form=form)
            lost = statistics.measure_loss_ratio(name, candidate)
            if lost <= loss:
                best = LowRankChoice(factor=candidate, output_loss_ratio=lost, parameters=cost * candidate.rank)
                high = middle - 1
            else:
                low = middle
    return best


def _count_parameters(layer: FactorizableLayer, factorization: Factorization) -> int:
    return sum(torch.Size(shape).numel() for shape in pair_shapes(layer.shape, factorization))


def factorize(network: Network, factorizations: Mapping[str, Factorization], batches: Iterable[Any]) -> Network:
    """Return the network with these layers factorized; the given network is not changed.

    Args:
        network: The network.
        factorizations: Rank and form for each layer, by the name of its weight.
        batches: Pairs of inputs and targets; the first ``_MAX_SAMPLES`` samples are used.

    Raises:
        StepError: the network does not have one of the layers.
    """
    statistics = collect_statistics(network, batches, factorizations)
    pairs = {name: statistics.factorize_weight(name, one) for name, one in factorizations.items()}
    return network.factorize(factorizations, pairs)

"""Quantization-aware training: the network rounds as its int8 file does (Jacob et al., 2018).

In: a ``Network``, the fake-quantization sites of its int8 file, and the values at these sites. Out: a module over the
network's own tensors. Weights are rounded after batch norm is folded into them. Within the range of a value, its
gradient passes through the rounding unchanged (straight-through estimator, Bengio et al., 2013).

Sites are matched by value: a node of the network's graph and a value of the ONNX graph are the same site if they hold
the same numbers on the same inputs. So the names that an exporter or a simplifier gives do not matter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from edgeopt.errors import StepError
from edgeopt.passes.aten import aten, read_attribute
from edgeopt.passes.network import Network
from edgeopt.records.quantization import FakeQuantSites, FakeQuantWeight
from edgeopt.task.values import flat_outputs, to_numpy

_STAGE = "quantize-aware"
_MATCH_TOLERANCE = 1e-3
"""Arrays that differ by less than this share of the largest value are the same site. Exports are within 1e-4."""
_MAX_UNEXPLAINED_RATIO = 0.3
"""Allowed difference between the module's and the file's outputs, over the change by int8 (root mean squares). With the
arithmetic of QDQ it is 1e-5 to 0.01 on trained networks. Float sums in another order sometimes round a value to the
next step, and random weights amplify this (0.15 in a deep network). A module that does not round at all has 1."""
_MIN_NOISE_RATIO = 1e-3
"""Smallest change by int8 that counts, over the output's root mean square."""

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default)
_LAYERS = (*_CONVOLUTIONS, aten.linear.default)
"""Operators whose first arguments are input, weight and bias."""
_GATES = {aten.silu.default: aten.sigmoid.default, aten.hardswish.default: aten.hardsigmoid.default}
"""Activations that ONNX writes as a value times its gate, and the gate."""
_Arrays = Mapping[str, NDArray[Any]]


def fake_quantize(network: Network, sites: FakeQuantSites, arrays: _Arrays) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return ``network`` with the rounding of its int8 file, over the same tensors, and notes.

    Batch norm uses its running statistics and dropout is off, as in the file.

    Args:
        network: The float network.
        sites: The values and weights that its int8 file rounds.
        arrays: ``input/NAME``, ``activation/NAME`` and ``weight/NAME`` of the float file, ``output/NAME`` of the int8
            file, with inputs and outputs in order.

    Raises:
        StepError: the module's outputs differ from those of the int8 file by more than ``_MAX_UNEXPLAINED_RATIO``.
    """
    inputs = tuple(torch.from_numpy(array) for name, array in arrays.items() if name.startswith("input/"))
    graph = copy.deepcopy(network.eval_module.graph)
    _write_gates(graph)
    module = fx.GraphModule(network.eval_module, graph)
    missing = [*_round_activations(module, sites, arrays, inputs), *_round_weights(module, sites, arrays)]
    module.recompile()
    notes = (f"quantize-aware: not rounded in training: {', '.join(missing)}",) if missing else ()
    with torch.no_grad():
        outputs, floats = flat_outputs(module(*inputs)), flat_outputs(network.eval_module(*inputs))
    expected = [array for name, array in arrays.items() if name.startswith("output/")]
    for index, (output, plain, array) in enumerate(zip(outputs, floats, expected, strict=True)):
        unexplained, noise = _noise_ratio(to_numpy(output), array), _noise_ratio(to_numpy(plain), array)
        if unexplained > _MAX_UNEXPLAINED_RATIO * max(noise, _MIN_NOISE_RATIO):
            raise StepError(
                _STAGE,
                f"training cannot imitate the int8 file: output {index} is off by {unexplained:.2g} of its root mean "
                f"square, and int8 itself changes {noise:.2g}; {_MAX_UNEXPLAINED_RATIO:.0%} of that is allowed. "
                f"{' '.join(notes)}",
            )
    return module, notes


def round_values(x: Tensor, scale: float, zero_point: int, low: int, high: int, shift: float) -> Tensor:
    """Return ``scale * (clip(round(x / scale) + zero_point, low, high) - zero_point)`` of ``x + shift``."""
    return torch.fake_quantize_per_tensor_affine(x + shift if shift else x, scale, zero_point, low, high)


def unclipped_hard_sigmoid(x: Tensor) -> Tensor:
    """Return a hard sigmoid without its clipping, which rounding does: a clipped 0 plus half a step could round up."""
    return x / 6 + 0.5


def weight_scale(weight: Tensor, axis: int | None, low: int, high: int) -> Tensor:
    """Return one scale per index of ``axis``, or a single one: the largest absolute value becomes the last level."""
    rows = weight.detach().abs()
    rows = rows.reshape(1, -1) if axis is None else rows.transpose(0, axis).flatten(1)
    return (rows.amax(1) * 2 / (high - low)).clamp_min(torch.finfo(torch.float32).tiny)


def round_weight(weight: Tensor, axis: int | None, low: int, high: int) -> Tensor:
    """Return a weight rounded to ``low .. high`` steps of ``weight_scale``."""
    scale = weight_scale(weight, axis, low, high)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(weight, scale[0], zeros[0], low, high)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, low, high)


def round_bias(bias: Tensor, weight: Tensor, axis: int | None, low: int, high: int, input_scale: float) -> Tensor:
    """Return a bias rounded to a multiple of the input's step times the weight's step."""
    step = weight_scale(weight, axis, low, high) * input_scale
    return bias + ((bias / step).round() * step - bias).detach()


def batch_norm_scale(gamma: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """Return the number that a batch norm in inference multiplies each channel by."""
    scale = torch.rsqrt(variance + epsilon)
    return scale if gamma is None else scale * gamma


def fold_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Return a convolution's weight with the batch norm after it folded in."""
    return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))


def fold_bias(bias: Tensor | None, beta: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
    """Return a convolution's bias with the batch norm after it folded in."""
    folded = (-mean if bias is None else bias - mean) * scale
    return folded if beta is None else folded + beta


def _write_gates(graph: fx.Graph) -> None:
    """Replace SiLU and hard-swish by products, as ONNX writes them."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _GATES:
            with graph.inserting_before(node):
                gate = graph.call_function(_GATES[node.target], (node.args[0],))
                product = graph.call_function(aten.mul.Tensor, (node.args[0], gate))
            node.replace_all_uses_with(product)
            graph.erase_node(node)


class _SiteFinder(fx.Interpreter):
    """Runs a graph and finds the first node with the numbers of each wanted array, in any shape."""

    def __init__(self, module: fx.GraphModule, wanted: _Arrays) -> None:
        super().__init__(module)
        self.wanted = dict(wanted)
        self.found: dict[str, fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and compare its value with the arrays still wanted."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and n.op in ("placeholder", "call_function"):
            for name, array in list(self.wanted.items()):
                if (
                    array.size == value.numel()
                    and _relative_difference(value.detach().numpy(), array) < _MATCH_TOLERANCE
                ):
                    self.found[name] = n
                    del self.wanted[name]
        return value


def _round_activations(
    module: fx.GraphModule, sites: FakeQuantSites, arrays: _Arrays, inputs: tuple[Tensor, ...]
) -> list[str]:
    """Insert rounding after the node of each site; return the sites without a node."""
    finder = _SiteFinder(module, {site.tensor: arrays[f"activation/{site.tensor}"] for site in sites.activations})
    with torch.no_grad():
        finder.run(*inputs)
    rounded: set[fx.Node] = set()
    for site in sites.activations:
        node = finder.found.get(site.tensor)
        if node is None or node in rounded:
            continue
        rounded.add(node)
        if site.shift and node.target == aten.hardsigmoid.default:
            node.target = unclipped_hard_sigmoid
        with module.graph.inserting_after(node):
            new = module.graph.call_function(round_values)
        node.replace_all_uses_with(new)
        new.args = (node, site.scale, site.zero_point, *sites.activation_levels, site.shift)
    return [site.tensor for site in sites.activations if site.tensor not in finder.found]


def _round_weights(module: fx.GraphModule, sites: FakeQuantSites, arrays: _Arrays) -> list[str]:
    """Round every weight that the file rounds, and its bias; return the weights that no node holds."""
    weights = _WeightFinder(sites, arrays)
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _LAYERS:
            continue
        layer, quantized = _fold_batch_norm(module, node, weights)
        if quantized is None:
            continue
        levels = (quantized.axis, *quantized.levels)
        weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
        with graph.inserting_before(layer):
            layer.update_arg(1, graph.call_function(round_weight, (weight, *levels)))
            if bias is not None and quantized.input_scale is not None:
                layer.update_arg(2, graph.call_function(round_bias, (bias, weight, *levels, quantized.input_scale)))
    for node in list(graph.nodes):
        value, readers = (
            _read_tensor(module, node),
            [user for user in node.users if user.target not in (round_weight, round_bias, fold_weight)],
        )
        quantized = weights.find(value) if value is not None and value.dim() >= 2 and readers else None
        if quantized is not None:
            with graph.inserting_after(node):
                new = graph.call_function(round_weight, (node, quantized.axis, *quantized.levels))
            for reader in readers:
                reader.replace_input_with(node, new)
    return [site.tensor for site in sites.weights if site.tensor not in weights.seen]


class _WeightFinder:
    """Finds the file's weight that holds the same numbers as a tensor."""

    def __init__(self, sites: FakeQuantSites, arrays: _Arrays) -> None:
        self.weights = [(site, arrays[f"weight/{site.tensor}"]) for site in sites.weights]
        self.seen: set[str] = set()

    def find(self, values: Tensor) -> FakeQuantWeight | None:
        """Return the file's weight with these values; if the file holds the transposed matrix, its axis is swapped."""
        numbers = values.detach().numpy()
        for site, array in self.weights:
            if array.shape == numbers.shape and _relative_difference(numbers, array) < _MATCH_TOLERANCE:
                self.seen.add(site.tensor)
                return site
            if (
                array.ndim == 2
                and array.T.shape == numbers.shape
                and _relative_difference(numbers, array.T) < _MATCH_TOLERANCE
            ):
                self.seen.add(site.tensor)
                return msgspec.structs.replace(site, axis=None if site.axis is None else 1 - site.axis)
        return None


def _read_tensor(module: fx.GraphModule, node: Any) -> Tensor | None:
    """Return the tensor that a node reads from the module, or None."""
    is_attribute = isinstance(node, fx.Node) and node.op == "get_attr"
    value = read_attribute(module, node) if is_attribute else None
    return value if isinstance(value, Tensor) else None


def _fold_batch_norm(
    module: fx.GraphModule, layer: fx.Node, weights: _WeightFinder
) -> tuple[fx.Node, FakeQuantWeight | None]:
    """Return a layer and its weight in the file. If the file has the batch norm folded in, it is folded here too."""
    weight, norm = _read_tensor(module, layer.args[1]), next(iter(layer.users), None)
    if weight is None:
        return layer, None
    if norm is None or len(layer.users) > 1 or norm.target != aten.batch_norm.default:
        return layer, weights.find(weight)
    _, gamma, beta, mean, variance, _, _, epsilon, *_ = norm.args
    running_variance = _read_tensor(module, variance)
    if running_variance is None or not isinstance(epsilon, float):
        return layer, weights.find(weight)
    quantized = weights.find(
        fold_weight(weight, batch_norm_scale(_read_tensor(module, gamma), running_variance, epsilon))
    )
    if quantized is None:
        return layer, weights.find(weight)
    x, weight_node, bias, *rest = layer.args if len(layer.args) > 2 else (*layer.args, None)
    graph = module.graph
    assert callable(layer.target)
    with graph.inserting_before(norm):
        scale = graph.call_function(batch_norm_scale, (gamma, variance, epsilon))
        folded = graph.call_function(fold_weight, (weight_node, scale))
        folded_bias = graph.call_function(fold_bias, (bias, beta, mean, scale))
        new = graph.call_function(layer.target, (x, folded, folded_bias, *rest), dict(layer.kwargs))
    norm.replace_all_uses_with(new)
    graph.erase_node(norm)
    graph.erase_node(layer)
    return new, quantized


def _relative_difference(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the largest difference over the largest value of ``wanted``; shapes may differ, sizes must not."""
    scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
    return float(np.abs(found.reshape(-1) - wanted.reshape(-1)).max(initial=0.0)) / scale


def _noise_ratio(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the root mean square of a difference over that of ``wanted``."""
    power = float(np.square(wanted, dtype=np.float64).mean()) or 1.0
    return float(np.sqrt(np.square(found.astype(np.float64) - wanted).mean() / power))

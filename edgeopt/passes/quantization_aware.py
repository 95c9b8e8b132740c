"""Quantization-aware training: a network that rounds where, and as, its int8 file does (Jacob et al., 2018).

In: a ``Network``, and what its int8 file rounds with the values at each place. Out: a module over the network's own
tensors. Weights are rounded with batch norm folded into them; gradients pass through rounding as if it were not there,
where the value is within its range (straight-through, Bengio et al., 2013).

Places are found by their values: on the same inputs, a node of the network's graph and a value of the ONNX graph are
the same place where they hold the same numbers. That asks nothing of an exporter's names or of a simplifier.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from edgeopt.errors import StepError
from edgeopt.passes.aten import aten
from edgeopt.passes.network import Network
from edgeopt.records.quantization import FakeQuantSites, FakeQuantWeight
from edgeopt.task import flat_outputs

QUANTIZATION_AWARE_STAGE = "quantize-aware"
_SAME = 1e-3
"""Of the largest value: what differs by less everywhere is the same place. Exports are within 1e-4 of the network."""
NOISE_SHARE = 0.3
"""So much of what int8 changes at the outputs (root mean square) the module may not account for. With QDQ's own
arithmetic it is 1e-5 to 0.01 on trained networks; float sums in another order round a value to the next step now and
then, which a network with random weights amplifies (0.15 in a deep one). A network that is not followed comes to 1."""
LEAST_NOISE = 1e-3
"""Of an output's root mean square: noise below it is not looked at."""

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default)
_LAYERS = (*_CONVOLUTIONS, aten.linear.default)
"""Operators whose first arguments are input, weight and bias."""
GATES = {aten.silu.default: aten.sigmoid.default, aten.hardswish.default: aten.hardsigmoid.default}
"""Activations that ONNX writes as the product of a value and its gate."""
_Arrays = Mapping[str, NDArray[Any]]


def fake_quantized_module(
    network: Network, roundings: FakeQuantSites, arrays: _Arrays
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return ``network`` as it computes in int8, over the same tensors, and notes.

    Batch norm uses its running statistics and dropout is off, as in the file.

    Args:
        network: The float network.
        roundings: What its int8 file rounds.
        arrays: ``input/NAME``, ``activation/NAME`` and ``weight/NAME`` of the float file, ``output/NAME`` of the int8
            file, inputs and outputs in order.

    Raises:
        StepError: the module does not compute what the int8 file computes, but for ``NOISE_SHARE``.
    """
    inputs = tuple(torch.from_numpy(array) for name, array in arrays.items() if name.startswith("input/"))
    graph = copy.deepcopy(network.eval_module.graph)
    _write_gates(graph)
    module = fx.GraphModule(network.eval_module, graph)
    missing = [*_round_activations(module, roundings, arrays, inputs), *_round_weights(module, roundings, arrays)]
    module.recompile()
    notes = (f"quantize-aware: not rounded in training: {', '.join(missing)}",) if missing else ()
    with torch.no_grad():
        outputs, floats = flat_outputs(module(*inputs)), flat_outputs(network.eval_module(*inputs))
    expected = [array for name, array in arrays.items() if name.startswith("output/")]
    for index, (output, plain, array) in enumerate(zip(outputs, floats, expected, strict=True)):
        missing_noise, noise = _noise(output.numpy(), array), _noise(plain.numpy(), array)
        if missing_noise > NOISE_SHARE * max(noise, LEAST_NOISE):
            raise StepError(
                QUANTIZATION_AWARE_STAGE,
                f"the network's int8 file cannot be imitated: output {index} is off by {missing_noise:.2g} of its root "
                f"mean square, of {noise:.2g} that int8 changes; {NOISE_SHARE:.0%} is allowed. {' '.join(notes)}",
            )
    return module, notes


def round_values(x: Tensor, scale: float, zero_point: int, low: int, high: int, shift: float) -> Tensor:
    """Return ``scale * (clip(round(x / scale) + zero_point, low, high) - zero_point)`` of ``x + shift``."""
    return torch.fake_quantize_per_tensor_affine(x + shift if shift else x, scale, zero_point, low, high)


def gate_line(x: Tensor) -> Tensor:
    """Return the line of a hard sigmoid, which rounding cuts: cut before, 0 plus half a step could become a step."""
    return x / 6 + 0.5


def weight_scale(weight: Tensor, axis: int | None, low: int, high: int) -> Tensor:
    """Return the scale of each index of ``axis``, or the one of all: the largest absolute value is the last level."""
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
    """Return a bias rounded to whole products of the input's and the weight's steps."""
    step = weight_scale(weight, axis, low, high) * input_scale
    return bias + ((bias / step).round() * step - bias).detach()


def norm_factor(gamma: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """Return what a batch norm in use multiplies each channel with."""
    factor = torch.rsqrt(variance + epsilon)
    return factor if gamma is None else factor * gamma


def fold_weight(weight: Tensor, factor: Tensor) -> Tensor:
    """Return a convolution's weight with the batch norm after it folded in."""
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))


def fold_bias(bias: Tensor | None, beta: Tensor | None, mean: Tensor, factor: Tensor) -> Tensor:
    """Return a convolution's bias with the batch norm after it folded in."""
    folded = (-mean if bias is None else bias - mean) * factor
    return folded if beta is None else folded + beta


def _write_gates(graph: fx.Graph) -> None:
    """Write SiLU and hard-swish as products."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in GATES:
            with graph.inserting_before(node):
                gate = graph.call_function(GATES[node.target], (node.args[0],))
                product = graph.call_function(aten.mul.Tensor, (node.args[0], gate))
            node.replace_all_uses_with(product)
            graph.erase_node(node)


class _Places(fx.Interpreter):
    """Runs a graph and finds the first node that holds each wanted array's numbers, whatever their shape."""

    def __init__(self, module: fx.GraphModule, wanted: _Arrays) -> None:
        super().__init__(module)
        self.wanted = dict(wanted)
        self.found: dict[str, fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, and compare."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and n.op in ("placeholder", "call_function"):
            for name, array in list(self.wanted.items()):
                if array.size == value.numel() and _difference(value.detach().numpy(), array) < _SAME:
                    self.found[name] = n
                    del self.wanted[name]
        return value


def _round_activations(
    module: fx.GraphModule, roundings: FakeQuantSites, arrays: _Arrays, inputs: tuple[Tensor, ...]
) -> list[str]:
    """Round after each place; return what has none."""
    places = _Places(module, {one.tensor: arrays[f"activation/{one.tensor}"] for one in roundings.activations})
    with torch.no_grad():
        places.run(*inputs)
    rounded: set[fx.Node] = set()
    for one in roundings.activations:
        node = places.found.get(one.tensor)
        if node is None or node in rounded:
            continue
        rounded.add(node)
        if one.shift and node.target == aten.hardsigmoid.default:
            node.target = gate_line
        with module.graph.inserting_after(node):
            new = module.graph.call_function(round_values)
        node.replace_all_uses_with(new)
        new.args = (node, one.scale, one.zero_point, *roundings.activation_levels, one.shift)
    return [one.tensor for one in roundings.activations if one.tensor not in places.found]


def _round_weights(module: fx.GraphModule, roundings: FakeQuantSites, arrays: _Arrays) -> list[str]:
    """Round every weight that the file rounds, and its bias; return those that no node holds."""
    held = _Held(roundings, arrays)
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _LAYERS:
            continue
        layer, found = _folded(module, node, held)
        if found is None:
            continue
        levels = (found.axis, *roundings.weight_levels)
        weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
        with graph.inserting_before(layer):
            layer.update_arg(1, graph.call_function(round_weight, (weight, *levels)))
            if bias is not None and found.input_scale is not None:
                layer.update_arg(2, graph.call_function(round_bias, (bias, weight, *levels, found.input_scale)))
    for node in list(graph.nodes):
        value, readers = (
            _tensor(module, node),
            [user for user in node.users if user.target not in (round_weight, round_bias, fold_weight)],
        )
        found = held.find(value) if value is not None and value.dim() >= 2 and readers else None
        if found is not None:
            with graph.inserting_after(node):
                new = graph.call_function(round_weight, (node, found.axis, *roundings.weight_levels))
            for reader in readers:
                reader.replace_input_with(node, new)
    return [one.tensor for one in roundings.weights if one.tensor not in held.seen]


class _Held:
    """Finds the file's weight of the same numbers."""

    def __init__(self, roundings: FakeQuantSites, arrays: _Arrays) -> None:
        self.weights = [(one, arrays[f"weight/{one.tensor}"]) for one in roundings.weights]
        self.seen: set[str] = set()

    def find(self, values: Tensor) -> FakeQuantWeight | None:
        """Return the file's weight of these values, with the axis as ``values`` has it: a matrix may be transposed."""
        found = values.detach().numpy()
        for one, array in self.weights:
            if array.shape == found.shape and _difference(found, array) < _SAME:
                self.seen.add(one.tensor)
                return one
            if array.ndim == 2 and array.T.shape == found.shape and _difference(found, array.T) < _SAME:
                self.seen.add(one.tensor)
                return msgspec.structs.replace(one, axis=None if one.axis is None else 1 - one.axis)
        return None


def _tensor(module: fx.GraphModule, node: Any) -> Tensor | None:
    """Return the tensor that a node reads from the module, or None."""
    is_attribute = isinstance(node, fx.Node) and node.op == "get_attr"
    value = operator.attrgetter(str(node.target))(module) if is_attribute else None
    return value if isinstance(value, Tensor) else None


def _folded(module: fx.GraphModule, layer: fx.Node, held: _Held) -> tuple[fx.Node, FakeQuantWeight | None]:
    """Return a layer and the file's weight of it; where the file holds a folded one, the batch norm is folded here."""
    weight, norm = _tensor(module, layer.args[1]), next(iter(layer.users), None)
    if weight is None:
        return layer, None
    if norm is None or len(layer.users) > 1 or norm.target != aten.batch_norm.default:
        return layer, held.find(weight)
    _, gamma, beta, mean, variance, _, _, epsilon, *_ = norm.args
    spread = _tensor(module, variance)
    if spread is None or not isinstance(epsilon, float):
        return layer, held.find(weight)
    found = held.find(fold_weight(weight, norm_factor(_tensor(module, gamma), spread, epsilon)))
    if found is None:
        return layer, held.find(weight)
    x, given, bias, *rest = layer.args if len(layer.args) > 2 else (*layer.args, None)
    graph = module.graph
    assert callable(layer.target)
    with graph.inserting_before(norm):
        factor = graph.call_function(norm_factor, (gamma, variance, epsilon))
        folded = graph.call_function(fold_weight, (given, factor))
        folded_bias = graph.call_function(fold_bias, (bias, beta, mean, factor))
        new = graph.call_function(layer.target, (x, folded, folded_bias, *rest), dict(layer.kwargs))
    norm.replace_all_uses_with(new)
    graph.erase_node(norm)
    graph.erase_node(layer)
    return new, found


def _difference(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the largest difference over the largest value, whatever the shapes; sizes are equal."""
    scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
    return float(np.abs(found.reshape(-1) - wanted.reshape(-1)).max(initial=0.0)) / scale


def _noise(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the root mean square of a difference over that of ``wanted``."""
    power = float(np.square(wanted, dtype=np.float64).mean()) or 1.0
    return float(np.sqrt(np.square(found.astype(np.float64) - wanted).mean() / power))

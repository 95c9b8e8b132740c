"""Merging parallel branches: a sum of convolutions of one input becomes a single convolution.

In: a graph. Out: the same graph, in which each such sum is its widest convolution, whose weight holds all branches. A
branch is a convolution, a batch norm, a scale, the input itself, or sums and differences of these, as in RepVGG (Ding
et al., 2021), MobileOne (Vasu et al., 2023), FastViT, or a positional encoding that is added to its input. Branches are
found by what the graph computes, not by the names of classes.

A branch fits if every position of its kernel is one of the widest kernel's, and its groups are parts of that one's
groups: the merged convolution never multiplies more than the widest branch did. If a branch has a batch norm, the
merged convolution keeps one, with the statistics of the sum, so that training goes on where it was.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeopt.passes.aten import argument, read_attribute, writes_into
from edgeopt.passes.branches.affine import Affine, AffineReader
from edgeopt.passes.prune.interpret import Shapes, execute, tensor_names


def merge_sums(module: fx.GraphModule, shapes: Shapes, inputs: Sequence[Tensor]) -> tuple[fx.GraphModule, int]:
    """Merge every sum of parallel branches.

    Args:
        module: A graph in evaluation mode; it is not changed.
        shapes: Of its values.
        inputs: One batch of real inputs: batch norms get the mean and the variance of the sum on it.

    Returns:
        A graph with its own copies of the tensors, and the number of sums that were merged. Without one, the graph that
        was given.
    """
    sums = find_sums(module, shapes)
    if not sums:
        return module, 0
    spreads = _measure_spreads(module, inputs, [name for name, found in sums.items() if found.norms])
    module = copy.deepcopy(module)
    nodes = {node.name: node for node in module.graph.nodes}
    for name, found in sums.items():
        _write(module, nodes, name, found, spreads.get(name))
    _drop_unused(module)
    module.recompile()
    return module, len(sums)


def find_sums(module: fx.GraphModule, shapes: Shapes) -> dict[str, Affine]:
    """Return the largest sums of two or more branches that are one convolution, by the name of their last node."""
    reader = AffineReader(module, shapes)
    owners = _single_owners(module)
    found: dict[str, Affine] = {}
    inside: set[fx.Node] = set()
    for node in reversed(list(module.graph.nodes)):
        if node in inside or node not in reader.outlines or reader.outlines[node].terms < 2:
            continue
        sum_ = reader.read(node)
        if sum_ is None or sum_.terms < 2 or not _can_be_written(sum_, owners):
            continue
        norms = tuple(norm for norm in sum_.norms if _norm_tensors(norm) <= owners)
        found[node.name] = replace(sum_, norms=norms)
        inside |= sum_.nodes
    return dict(reversed(found.items()))


def _single_owners(module: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that give a tensor which is read only once in the whole graph."""
    names = tensor_names(module)
    given = [node for node in module.graph.nodes if node.op == "get_attr"]
    reads = Counter(names[str(node.target)] for node in given for _ in node.users)
    return {node for node in given if reads[names[str(node.target)]] == 1}


def _can_be_written(sum_: Affine, owners: set[fx.Node]) -> bool:
    """Tell whether no other layer has the convolution's tensors, and nothing changes the source between branches."""
    assert sum_.conv is not None, "a sum of two branches has a convolution"
    tensors = {argument(sum_.conv, name) for name in ("weight", "bias")} - {None}
    changing = [user for user in sum_.source.users if writes_into(user, sum_.source)]
    only_here = set(sum_.source.users) <= sum_.nodes
    return tensors <= owners and (not changing or only_here)


def _norm_tensors(norm: fx.Node) -> set[Any]:
    """Return what a batch norm reads besides its input; None is among it if it lacks a weight or a bias."""
    return {argument(norm, name) for name in ("weight", "bias", "running_mean", "running_var")}


def _measure_spreads(
    module: fx.GraphModule, inputs: Sequence[Tensor], names: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean and the variance of each channel of some values, in float64."""
    spreads = {}
    for node, value in execute(module, [tensor.clone() for tensor in inputs]):
        if node.name in names:
            var, mean = torch.var_mean(value.double(), [dim for dim in range(value.ndim) if dim != 1], correction=0)
            spreads[node.name] = mean, var
    return spreads


def _write(
    module: fx.GraphModule,
    nodes: dict[str, fx.Node],
    name: str,
    found: Affine,
    spread: tuple[Tensor, Tensor] | None,
) -> None:
    """Replace a sum by its convolution, and by the batch norm after it if it has one."""
    graph, last = module.graph, nodes[name]
    assert found.conv is not None
    conv = nodes[found.conv.name]
    norm = nodes[found.norms[0].name] if found.norms else None
    bias = argument(conv, "bias")
    with graph.inserting_before(last):
        if bias is None and norm is None and bool(found.bias.any()):
            target = str(argument(conv, "weight").target).removesuffix("weight") + "bias"
            dtype = read_attribute(module, argument(conv, "weight")).dtype
            _set_new(module, target, nn.Parameter(found.bias.to(dtype)))
            bias = graph.get_attr(target)
        result = graph.create_node(
            "call_function", conv.target, (conv.args[0], conv.args[1], bias, *conv.args[3:]), conv.kwargs
        )
        _fill(module, argument(conv, "weight"), found.weight)
        if norm is None:
            _fill(module, bias, found.bias)
        else:
            assert spread is not None
            mean, var = spread
            _fill(module, bias, torch.zeros_like(found.bias))
            _fill(module, argument(norm, "running_mean"), mean - found.bias)
            _fill(module, argument(norm, "running_var"), var)
            _fill(module, argument(norm, "weight"), (var + argument(norm, "eps")).sqrt())
            _fill(module, argument(norm, "bias"), mean)
            result = graph.create_node("call_function", norm.target, (result, *norm.args[1:]), norm.kwargs)
    last.replace_all_uses_with(result)
    for node in reversed(list(graph.nodes)):
        if node.name in {one.name for one in found.nodes}:
            graph.erase_node(node)


def _fill(module: fx.GraphModule, node: fx.Node | None, value: Tensor) -> None:
    if node is not None:
        read_attribute(module, node).data.copy_(value)


def _set_new(module: nn.Module, target: str, value: nn.Parameter) -> None:
    """Add a parameter to the submodule that its name says, which exists."""
    owner, _, name = target.rpartition(".")
    module.get_submodule(owner).register_parameter(name, value)


def _drop_unused(module: fx.GraphModule) -> None:
    """Drop the tensors of branches that are gone, and what was computed from them."""
    graph = module.graph
    for node in reversed(list(graph.nodes)):
        if not node.users and (node.op == "get_attr" or (node.op == "call_function" and _is_constant(node))):
            graph.erase_node(node)
    module.delete_all_unused_submodules()
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


def _is_constant(node: fx.Node) -> bool:
    return all(used.op == "get_attr" or _is_constant(used) for used in node.all_input_nodes) and bool(
        node.all_input_nodes
    )

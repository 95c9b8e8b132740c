"""Which residual architectures of the zoo offer branches that can be left out. This is a part of ``depth.py``.

An architecture is *residual* if its graph adds a value to what its own layers make of that value. This is asked of the
graph by its edges only, so that an architecture whose branches are missed counts too. Nothing is trained: whether a
branch is worth leaving out is another question.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from benchmarks.zoo.architecture import Architecture
from edgeopt.errors import EdgeoptError
from edgeopt.passes.aten import aten, plain_form
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.depth import inner_branches
from edgeopt.passes.prune.interpret import Shapes, tensor_names

LAYERS: tuple[Any, ...] = (
    aten.conv1d, aten.conv2d, aten.conv3d, aten.conv_transpose1d, aten.conv_transpose2d, aten.linear, aten.matmul,
    aten.mm, aten.bmm, aten.addmm,
)  # fmt: skip
Row = dict[str, Any]


def residual_sums(module: fx.GraphModule, shapes: Shapes) -> list[str]:
    """Return the names of the nodes that add a value to what layers make of it.

    Args:
        module: A traced network, in evaluation mode.
        shapes: Of its values.
    """
    inputs: dict[fx.Node, set[fx.Node]] = {}
    for node in module.graph.nodes:
        inputs[node] = {node}.union(*(inputs[one] for one in node.all_input_nodes))
    return [node.name for node in module.graph.nodes if _adds_equal_shapes(node, shapes) and _is_residual(node, inputs)]


def _adds_equal_shapes(node: fx.Node, shapes: Shapes) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    operands = [one for one in node.args[:2] if isinstance(one, fx.Node)]
    return (
        packet is not None
        and plain_form(packet) is aten.add
        and len(operands) == 2
        and all(shapes.get(one.name) == shapes.get(node.name) for one in operands)
    )


def _is_residual(node: fx.Node, inputs: dict[fx.Node, set[fx.Node]]) -> bool:
    """Tell whether one operand of a sum is made of the other one, by a layer with weights."""
    first, second = node.all_input_nodes[:2] if len(node.all_input_nodes) > 1 else (node, node)
    return any(
        around in inputs[made] and any(_is_layer(one) and around in inputs[one] for one in inputs[made] - {around})
        for around, made in ((first, second), (second, first))
        if around is not made
    )


def _is_layer(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in LAYERS and any(
        one.op == "get_attr" for one in node.all_input_nodes
    )


def repeats_layers(module: fx.GraphModule) -> bool:
    """Tell whether several nodes multiply by the same weight, as the steps of a solver do."""
    names = tensor_names(module)
    read = [
        names[str(one.target)]
        for node in module.graph.nodes
        if _is_layer(node)
        for one in node.all_input_nodes[1:2]
        if one.op == "get_attr"
    ]
    return len(set(read)) < len(read)


def look_at(name: str, architecture: Architecture) -> Row:
    """Return the row of an architecture: its residual sums, the branches that were found, and those on offer."""
    start = time.perf_counter()
    torch.manual_seed(0)
    row: Row = {"name": name, "failure": None, "residual_sums": 0, "repeats_layers": False, "found": [], "offered": []}
    try:
        module, inputs = architecture.build()
        network = Network.trace(module.eval(), inputs)
        row["residual_sums"] = len(residual_sums(network.eval_module, network.shapes()))
        row["repeats_layers"] = repeats_layers(network.eval_module)
        row["found"] = [branch.name for branch in network.branches()]
        row["offered"] = [one.branch.name for one in inner_branches(network, analyse(network))]
    except EdgeoptError as error:
        row["failure"] = str(error)[:300]
    return row | {"seconds": time.perf_counter() - start}


def reason_for_none(row: Row) -> str:
    """Return why a residual architecture offers no branch, as far as that is known."""
    if row["found"]:
        return "none of its branches has channels of its own that can go"
    return "its layers are used several times" if row["repeats_layers"] else "no branch was found"


def compute_zoo_figures(rows: Sequence[Row]) -> Row:
    """Return the claims on the zoo; empty if nothing was looked at."""
    if not rows:
        return {}
    residual = [row for row in rows if row["residual_sums"]]
    return {
        "zoo_looked_at": len(rows),
        "zoo_failed": [row["name"] for row in rows if row["failure"]],
        "zoo_residual": len(residual),
        "zoo_offering_branches": sum(bool(row["offered"]) for row in residual),
        "zoo_offering_none": {row["name"]: reason_for_none(row) for row in residual if not row["offered"]},
        "zoo_offering_fewer": {
            row["name"]: [len(row["offered"]), row["residual_sums"]]
            for row in residual
            if 0 < len(row["offered"]) < row["residual_sums"]
        },
    }

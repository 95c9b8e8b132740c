"""``inline_vmaps``: what ``torch.vmap`` computes for each element becomes operators on whole tensors.

``torch.export`` records the calls with which functorch enters and leaves a dimension, and between them operators
without it, as in the masks of Hugging Face transformers. Such a graph runs only in one piece, and no exporter takes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx
from torch._functorch import predispatch

from edgeopt.passes.tracing.composites import insert_operators


def inline_vmaps(module: fx.GraphModule) -> None:
    """Replace every region between entering and leaving ``torch.vmap`` by operators on whole tensors, in place.

    Args:
        module: An exported graph, whose nodes still have their example values (``meta["val"]``).
    """
    for region in list(_find_regions(module.graph)):
        _inline(module, region)


def _find_regions(graph: fx.Graph) -> Iterator[list[fx.Node]]:
    """Yield the nodes of each outermost region."""
    depth, region = 0, []
    for node in graph.nodes:
        depth += node.target is predispatch._vmap_increment_nesting
        if depth:
            region.append(node)
        depth -= node.target is predispatch._vmap_decrement_nesting
        if region and not depth:
            yield region
            region = []


def _inline(module: fx.GraphModule, region: list[fx.Node]) -> None:
    """Run a region on the example values, through ``torch.vmap``, and insert the operators that it calls."""
    inside = set(region)
    used = list(dict.fromkeys(source for node in region for source in node.all_input_nodes if source not in inside))
    results = [node for node in region if not inside.issuperset(node.users)]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {source: graph.placeholder(source.name) for source in used}
    for node in region:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in results])
    inlined: Any = insert_operators(module, region[0], fx.GraphModule(module, graph), used)
    for node, result in zip(results, inlined, strict=True):
        node.replace_all_uses_with(result)
    for node in reversed(region):
        module.graph.erase_node(node)

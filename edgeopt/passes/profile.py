"""A quick look at where a network's time goes in PyTorch: enough to show, never to decide."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgeopt.passes.network import Network
from edgeopt.passes.prune.interpret import tensor_names

_RUNS = 7
"""After one to warm up; their median counts."""


class _Timed(fx.Interpreter):
    """Runs a graph and notes how long each node took."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.ns: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node against the clock."""
        start = time.perf_counter_ns()
        value = super().run_node(n)
        self.ns[n] = time.perf_counter_ns() - start
        return value


def weight_times(network: Network, inputs: Sequence[Tensor]) -> tuple[dict[str, float], float]:
    """Return the time of each weight's operator, by the weight's name, and that of all operators, in ns.

    Args:
        network: The network; it is left as it is.
        inputs: One batch.
    """
    names = tensor_names(network.eval_module)
    runs: list[dict[fx.Node, int]] = []
    for _ in range(_RUNS + 1):
        timed = _Timed(network.eval_module)
        with torch.no_grad():
            timed.run(*(tensor.clone() for tensor in inputs))
        runs.append(timed.ns)
    found: dict[str, float] = {}
    total = 0.0
    for node in network.eval_module.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        ns = float(statistics.median(run[node] for run in runs[1:]))
        total += ns
        read = [names[str(one.target)] for one in node.all_input_nodes if one.op == "get_attr"]
        if read:
            found[read[0]] = found.get(read[0], 0.0) + ns
    return found, total

"""A rough profile of a network in PyTorch: good enough to show, never used to decide."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgeopt.passes.network import Network
from edgeopt.passes.prune.interpret import tensor_names

_RUN_COUNT = 7
"""Timed runs after one warm-up run; the median is reported."""


class _TimingInterpreter(fx.Interpreter):
    """Runs a graph and records how long each node takes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.ns: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and time it."""
        start = time.perf_counter_ns()
        value = super().run_node(n)
        self.ns[n] = time.perf_counter_ns() - start
        return value


def time_weights(network: Network, inputs: Sequence[Tensor]) -> tuple[dict[str, float], float]:
    """Return the time of the operator that reads each weight, by weight name, and the time of all operators, in ns.

    Args:
        network: The network; it is not changed.
        inputs: One batch.
    """
    names = tensor_names(network.eval_module)
    runs: list[dict[fx.Node, int]] = []
    for _ in range(_RUN_COUNT + 1):
        interpreter = _TimingInterpreter(network.eval_module)
        with torch.no_grad():
            interpreter.run(*(tensor.clone() for tensor in inputs))
        runs.append(interpreter.ns)
    weight_ns: dict[str, float] = {}
    total_ns = 0.0
    for node in network.eval_module.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        ns = float(statistics.median(run[node] for run in runs[1:]))
        total_ns += ns
        weights = [names[str(source.target)] for source in node.all_input_nodes if source.op == "get_attr"]
        if weights:
            weight_ns[weights[0]] = weight_ns.get(weights[0], 0.0) + ns
    return weight_ns, total_ns

"""What a file of a network is compared with: inputs, among them edge inputs, and the network's own outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.bench.outputs import read_batches, write_batches
from edgeopt.export.edge_inputs import make_edge_inputs
from edgeopt.passes.network import Network
from edgeopt.passes.prune.float64 import Float64Interpreter
from edgeopt.records.trial import EdgeInput
from edgeopt.task import CheckedTask
from edgeopt.task.values import flat_outputs

_Arrays = dict[str, NDArray[Any]]
_EDGE_SAMPLES = 2
_STEADY_RATIO = 1e-4
"""Between outputs in float32 and float64, a tenth of what parity allows."""
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
"""Of a graph that does not take an input, or does not run in float64."""


def write_parity_data(
    network: Network, task: CheckedTask, examples: Path, inputs: Path, out: Path
) -> tuple[EdgeInput, ...]:
    """Write the inputs on which a network's files are compared with it, and its outputs for them.

    Args:
        network: The network.
        task: Names its inputs and outputs.
        examples: File of real inputs.
        inputs: File to write: the examples, then the edge inputs on which the network is finite.
        out: File to write: the network's outputs for all of them.

    Returns:
        The edge inputs, in order.
    """
    batches = read_batches(examples)
    outputs = [run_batch(network.eval_module, task, batch) for batch in batches]
    values = list(batches[0].values())
    few = range(min(_EDGE_SAMPLES, task.axes.count(values)))
    small = dict(zip(batches[0], task.axes.take(values, few), strict=True))
    exact = Float64Interpreter(network.eval_module)
    kept = []
    for kind, batch in make_edge_inputs(small):
        try:
            found = run_batch(network.eval_module, task, batch)
        except _FAILURES:
            continue
        if all(np.isfinite(values).all() for values in found.values()):
            kept.append(EdgeInput(kind=kind, steady=_is_steady(exact, task, batch, found)))
            batches.append(batch)
            outputs.append(found)
    write_batches(inputs, batches)
    write_batches(out, outputs)
    return tuple(kept)


def run_batch(module: Callable[..., Any], task: CheckedTask, batch: Mapping[str, NDArray[Any]]) -> _Arrays:
    """Return a module's outputs for one batch, by name."""
    with torch.no_grad():
        outputs = flat_outputs(module(*(torch.from_numpy(batch[name]) for name in task.input_names)))
    return dict(zip(task.output_names, (value.numpy() for value in outputs), strict=True))


def _is_steady(exact: Float64Interpreter, task: CheckedTask, batch: _Arrays, found: _Arrays) -> bool:
    """Tell whether rounding does not decide the outputs: in float64 they are the same."""
    wide = {
        name: values.astype(np.float64) if np.issubdtype(values.dtype, np.floating) else values
        for name, values in batch.items()
    }
    try:
        outputs = run_batch(exact.run, task, wide)
    except _FAILURES:
        return False
    return all(
        values.shape == outputs[name].shape
        and bool((np.abs(values - outputs[name]) <= _STEADY_RATIO * np.abs(outputs[name]).max(initial=0.0)).all())
        for name, values in found.items()
    )

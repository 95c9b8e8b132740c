"""What a file of a network is compared with: inputs, among them edge inputs, and the network's own outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.bench.outputs import read_batches, write_batches
from edgeopt.export.edge_inputs import make_edge_inputs
from edgeopt.passes.network import Network
from edgeopt.passes.prune.float64 import Float64Interpreter
from edgeopt.records.trial import EdgeInput
from edgeopt.task import CheckedTask
from edgeopt.task.values import flat_outputs, to_numpy

_Arrays = dict[str, NDArray[Any]]
_EDGE_SAMPLES = 2
_ROUNDING_SAMPLES = 16
"""More would cost memory: in float64 a value takes twice as much."""
_NEGLIGIBLE = 1e-12
"""No relative error is taken of an output whose largest value is below this."""
_STEADY_RATIO = 1e-4
"""Between outputs in float32 and float64, a tenth of what parity allows."""
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
"""Of a graph that does not take an input."""
_FLOAT64_FAILURES = (*_FAILURES, AttributeError, LookupError, AssertionError)
"""Of a graph that does not run in float64. The tolerance on its outputs is then not widened."""


class ParityData(NamedTuple):
    """What a comparison has to know besides inputs and outputs."""

    edge_inputs: tuple[EdgeInput, ...]
    """In the order of their batches."""
    rounding: dict[str, float]
    """The network's own error of rounding, by output: the largest difference between float32 and float64 over the
    output's largest value, on a few examples. Only of outputs that are real numbers, and empty if the network does not
    run in float64."""


def write_parity_data(network: Network, task: CheckedTask, examples: Path, inputs: Path, out: Path) -> ParityData:
    """Write the inputs on which a network's files are compared with it, and its outputs for them.

    Args:
        network: The network.
        task: Names its inputs and outputs.
        examples: File of real inputs.
        inputs: File to write: the examples, then the edge inputs on which the network is finite.
        out: File to write: the network's outputs for all of them.
    """
    batches = read_batches(examples)
    outputs = [run_batch(network.eval_module, task, batch) for batch in batches]
    values = list(batches[0].values())
    few = range(min(_EDGE_SAMPLES, task.axes.count(values)))
    small = dict(zip(batches[0], task.axes.take(values, few), strict=True))
    exact = Float64Interpreter(network.eval_module)
    rounding = _rounding(network, exact, task, batches[0])
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
    return ParityData(tuple(kept), rounding)


def _rounding(network: Network, exact: Float64Interpreter, task: CheckedTask, batch: _Arrays) -> dict[str, float]:
    """Return the relative error of each output, as its largest value has it."""
    values = list(batch.values())
    some = range(min(_ROUNDING_SAMPLES, task.axes.count(values)))
    few = dict(zip(batch, task.axes.take(values, some), strict=True))
    wide = _in_float64(exact, task, few)
    if wide is None:
        return {}
    ratios = {}
    for name, found in run_batch(network.eval_module, task, few).items():
        expected = wide[name]
        is_real = np.issubdtype(found.dtype, np.floating) and np.issubdtype(expected.dtype, np.floating)
        largest = float(np.abs(expected).max(initial=0.0)) if is_real and found.shape == expected.shape else 0.0
        if _NEGLIGIBLE < largest < np.inf and np.isfinite(found).all():
            ratios[name] = float(np.abs(found - expected).max()) / largest
    return ratios


def run_batch(module: Callable[..., Any], task: CheckedTask, batch: Mapping[str, NDArray[Any]]) -> _Arrays:
    """Return a module's outputs for one batch, by name."""
    with torch.no_grad():
        outputs = flat_outputs(module(*(torch.from_numpy(batch[name]) for name in task.input_names)))
    return dict(zip(task.output_names, (to_numpy(value) for value in outputs), strict=True))


def _is_steady(exact: Float64Interpreter, task: CheckedTask, batch: _Arrays, found: _Arrays) -> bool:
    """Tell whether rounding does not decide the outputs: in float64 they are the same."""
    outputs = _in_float64(exact, task, batch)
    return outputs is not None and all(
        values.shape == outputs[name].shape
        and bool((np.abs(values - outputs[name]) <= _STEADY_RATIO * np.abs(outputs[name]).max(initial=0.0)).all())
        for name, values in found.items()
    )


def _in_float64(exact: Float64Interpreter, task: CheckedTask, batch: _Arrays) -> _Arrays | None:
    """Return a network's outputs in float64; None if it does not run so."""
    wide = {
        name: values.astype(np.float64) if np.issubdtype(values.dtype, np.floating) else values
        for name, values in batch.items()
    }
    try:
        return run_batch(exact.run, task, wide)
    except _FLOAT64_FAILURES:
        return None

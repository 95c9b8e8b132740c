"""Simplify: fold constants and remove nodes that compute nothing, with onnxsim.

Runs in a subprocess (``edgeopt.graph.jobs``).
"""

from __future__ import annotations

import onnx
import onnx.inliner
import onnxsim

from edgeopt.errors import StepError
from edgeopt.graph.model import drop_metadata
from edgeopt.graph.pooling import write_global_average_pools
from edgeopt.model_files.tensors import count_model_bytes, inputs_as_weights, weights_as_inputs

_STAGE = "simplify"
_MAX_GROWTH_RATIO = 1.05
"""Of the bytes: a few more are worth fewer nodes."""


def simplify(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a simpler model with the same outputs, and notes."""
    notes = []
    if model.functions:  # no step looks into them
        notes.append(f"simplify: {len(model.functions)} functions of the file written as the nodes they consist of")
        model = onnx.inliner.inline_local_functions(model)
    before, bytes_before = len(model.graph.node), count_model_bytes(model)
    graph = weights_as_inputs(model)
    simple, passed = onnxsim.simplify(graph)
    if not passed:
        raise StepError(_STAGE, "onnxsim's result computes something different from its input.")
    if graph is not model:
        simple = inputs_as_weights(simple, model)
    drop_metadata(simple)  # onnxsim records what it did
    pools = write_global_average_pools(simple)
    after = len(simple.graph.node)
    # a Flatten after a pooling adds a node; computed constants add bytes, such as floats from stored integers
    if after > before or count_model_bytes(simple) > _MAX_GROWTH_RATIO * bytes_before:
        return model, (*notes, "simplify: kept the graph unchanged, onnxsim made it larger")
    notes += [f"simplify: {before} to {after} nodes"] if after < before else []
    if pools:
        notes.append(f"simplify: {pools} ReduceMean replaced with GlobalAveragePool")
    return simple, tuple(notes)

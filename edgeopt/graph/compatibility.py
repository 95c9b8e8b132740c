"""Checks that a stage's result is one valid file that the target's runtime can load."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeopt.errors import StepError
from edgeopt.graph.model import load, read_opset, walk_graphs

_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operator sets in the released builds of ONNX Runtime."""


def check_compatibility(path: Path, max_opset: int, max_ir: int, *, stage: str = "compatibility") -> None:
    """Check one file.

    Raises:
        StepError: it needs other files, is invalid, or the target's runtime would not load it.
    """
    model = load(path, stage)
    if read_opset(model) > max_opset or model.ir_version > max_ir:
        raise StepError(
            stage,
            f"{path.name} has operator set {read_opset(model)} and IR {model.ir_version}; the target loads at most "
            f"{max_opset} and {max_ir}. Raise min_onnxruntime in the profile.",
        )
    foreign = sorted(
        {node.domain for graph in walk_graphs(model.graph) for node in graph.node if node.domain not in _KNOWN_DOMAINS}
    )
    if foreign:
        raise StepError(stage, f"{path.name} uses operators of {', '.join(foreign)}, which ONNX Runtime does not have.")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise StepError(stage, f"{path.name} is not valid: {str(error).splitlines()[0]}") from error

"""What a file has to be before it goes on: one file, valid, below the target's ceilings, no foreign operators."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeopt.errors import StepError
from edgeopt.graph.model import graphs, load, opset_of

KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operator sets that the released builds of ONNX Runtime have."""


def check_ceiling(path: Path, max_opset: int, max_ir: int, *, stage: str = "lint") -> None:
    """Check one file.

    Raises:
        StepError: it needs other files, is invalid, or a target's runtime would not load it.
    """
    model = load(path, stage)
    if opset_of(model) > max_opset or model.ir_version > max_ir:
        raise StepError(
            stage,
            f"{path.name} has operator set {opset_of(model)} and IR {model.ir_version}; the target loads at most "
            f"{max_opset} and {max_ir}. Raise min_onnxruntime in the profile, or leave this step out.",
        )
    foreign = sorted(
        {node.domain for graph in graphs(model.graph) for node in graph.node if node.domain not in KNOWN_DOMAINS}
    )
    if foreign:
        raise StepError(stage, f"{path.name} uses operators of {', '.join(foreign)}, which ONNX Runtime does not have.")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise StepError(stage, f"{path.name} is not valid: {str(error).splitlines()[0]}") from error

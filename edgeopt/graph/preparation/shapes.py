"""Infers the shapes that ONNX Runtime's quantizer needs: by its own tool, or in simpler ways if that gives up.

Runs in a subprocess (``edgeopt.graph.jobs``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import onnxruntime
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeopt.errors import StepError
from edgeopt.graph.model import load, save
from edgeopt.graph.preparation.attempts import attempt
from edgeopt.model_files.inferred_shapes import write_inferred_shapes

_STAGE = "quantize"


class _Way(NamedTuple):
    words: str
    run: Callable[[Path, Path], None]


def _infer_plainly(source: Path, target: Path) -> None:
    model = load(source, _STAGE)
    write_inferred_shapes(model, data_prop=True)
    save(model, target)


_WAYS = (
    _Way("ONNX Runtime's preparation", lambda source, target: quant_pre_process(str(source), str(target))),
    _Way(
        "without symbolic shape inference",
        lambda source, target: quant_pre_process(str(source), str(target), skip_symbolic_shape=True),
    ),
    _Way("with onnx's shape inference only", _infer_plainly),
    _Way("without inferred shapes", lambda source, target: save(load(source, _STAGE), target)),
)
"""The best way first."""


def prepare_shapes(source: Path, target: Path) -> str | None:
    """Write a model with inferred shapes; return a note if the first way failed.

    Raises:
        StepError: ONNX Runtime does not load the file in any way.
    """
    failures: list[str] = []
    for way in _WAYS:
        reason = attempt(partial(_take, way, source, target)).reason
        if reason is None:
            return f"quantize: prepared {way.words}, because {failures[0]}" if failures else None
        failures.append(f"{way.words} failed ({reason})")
    raise StepError(_STAGE, f"the graph cannot be prepared: {failures[-1]}.")


def _take(way: _Way, source: Path, target: Path) -> None:
    way.run(source, target)
    _check(target)


def _check(path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

"""The table of graph steps: a step's type to the function that does it.

Add a step: a record in ``edgeopt.records.recipe``, a function here, a line in ``STEPS``. ``apart`` says that it runs in
a process of its own (``edgeopt.graph.subprocess_worker``), because it may crash or because it opens an ONNX Runtime session.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx

from edgeopt.errors import StepError
from edgeopt.graph.compact import compact
from edgeopt.graph.denormals import flush_denormals
from edgeopt.graph.model import load, lower_ir, save
from edgeopt.graph.quantization.qlinear_fusion import fuse_qlinear
from edgeopt.graph.quantization.weight_only import quantize_weights
from edgeopt.records.recipe import (
    Compact,
    Float16,
    FlushDenormals,
    FuseQLinear,
    GraphStep,
    Quantize,
    QuantizeDynamic,
    QuantizeWeights,
    Simplify,
)

AnyStep = GraphStep | FuseQLinear

StepOutput = tuple[onnx.ModelProto, tuple[str, ...]]
"""A model and notes for the report."""


class StepFunction(NamedTuple):
    """How a step is done."""

    run: Callable[[AnyStep, onnx.ModelProto, Path | None], StepOutput]
    """Takes the step, a model that it may change, and the calibration file."""
    apart: bool


def _simplify(step: AnyStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.simplify import simplify

    return simplify(model)


def _flush_denormals(step: AnyStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    count = flush_denormals(model)
    return model, (f"flush-denormals: {count} weights set to zero",) if count else ()


def _quantize(step: AnyStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.quantization.static import quantize

    assert isinstance(step, Quantize)
    if calibration is None:
        raise StepError("quantize", "needs a calibration file, and none was given.")
    return quantize(model, step, calibration)


def _quantize_dynamic(step: AnyStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.quantization.dynamic import quantize_products

    assert isinstance(step, QuantizeDynamic)
    return quantize_products(model, step), ()


def _quantize_weights(step: AnyStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    assert isinstance(step, QuantizeWeights)
    return quantize_weights(model, step), ()


def _half(step: AnyStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.float16 import to_float16

    return to_float16(model), ()


def _fuse(step: AnyStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    count = fuse_qlinear(model)
    return model, (f"fuse: {count} nodes written as integer operators",) if count else ()


def _compact(step: AnyStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    compact(model)
    return model, ()


STEPS: dict[type[AnyStep], StepFunction] = {
    Simplify: StepFunction(_simplify, apart=True),
    FlushDenormals: StepFunction(_flush_denormals, apart=False),
    Quantize: StepFunction(_quantize, apart=True),
    QuantizeDynamic: StepFunction(_quantize_dynamic, apart=True),
    QuantizeWeights: StepFunction(_quantize_weights, apart=False),
    Float16: StepFunction(_half, apart=True),
    FuseQLinear: StepFunction(_fuse, apart=False),
    Compact: StepFunction(_compact, apart=False),
}


def apply_step(step: AnyStep, source: Path, target: Path, calibration: Path | None) -> tuple[str, ...]:
    """Do one step in this process: read ``source``, write ``target``, return notes."""
    model, notes = STEPS[type(step)].run(step, load(source, name_of(step)), calibration)
    lower_ir(model)
    save(model, target)
    return notes


def name_of(step: AnyStep) -> str:
    """Return a step's tag, such as ``flush-denormals``."""
    return str(step.__struct_config__.tag)

"""The table of graph steps: from a step's type to the function that applies it.

To add a step: a record in ``edgeopt.records.recipe``, a function here, and a line in ``STEPS``. Set ``in_subprocess``
if it may crash or opens an ONNX Runtime session: it then runs in ``edgeopt.graph.jobs``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import onnx

from edgeopt.errors import StepError
from edgeopt.graph.compact import compact
from edgeopt.graph.denormals import flush_denormals
from edgeopt.graph.facts import has_half_weights
from edgeopt.graph.fourier import write_transforms_as_convolutions
from edgeopt.graph.model import load, lower_ir, save
from edgeopt.graph.preparation.widening import widen_halves
from edgeopt.graph.quantization.qlinear_fusion import fuse_qlinear
from edgeopt.graph.rounding.packing import pack
from edgeopt.graph.weights.unseen_rows import drop_rows
from edgeopt.records.recipe import (
    Compact,
    DropUnseenRows,
    Float16,
    FlushDenormals,
    FuseQLinear,
    GraphStep,
    PackWeights,
    Quantize,
    QuantizeDynamic,
    QuantizeStep,
    QuantizeWeights,
    Simplify,
    StoreWeights,
)


class StepOutput(NamedTuple):
    """What a step makes."""

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()
    """For the report."""
    names: Mapping[str, str] = MappingProxyType({})
    """What new names of inner values stand for."""


class Remarks(NamedTuple):
    """What is known of a file after a step."""

    notes: tuple[str, ...]
    names: Mapping[str, str] = MappingProxyType({})
    """As in ``StepOutput``."""


class StepFunction(NamedTuple):
    """How a step is applied."""

    run: Callable[[GraphStep, onnx.ModelProto, Path | None], StepOutput]
    """Takes the step, a model that it may change, and the calibration file."""
    in_subprocess: bool


def _drop_unseen_rows(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    assert isinstance(step, DropUnseenRows)
    drop_rows(model, step)
    notes = tuple(f"drop-unseen-rows: '{name}': {kept.sentence}" for name, kept in step.tables.items())
    return StepOutput(model, notes)


def _simplify(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.simplify import simplify

    return StepOutput(*simplify(model))


def _flush_denormals(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    count = flush_denormals(model)
    return StepOutput(model, (f"flush-denormals: {count} weights set to zero",) if count else ())


def _quantize(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.quantization.static import quantize

    assert isinstance(step, Quantize)
    if calibration is None:
        raise StepError("quantize", "needs a calibration file, but none was given.")
    return StepOutput(*quantize(model, step, calibration))


def _quantize_dynamic(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.quantization.dynamic import quantize_products

    assert isinstance(step, QuantizeDynamic)
    return StepOutput(*quantize_products(model, step, calibration))


def _quantize_weights(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.weights.weight_only import quantize_weights

    assert isinstance(step, QuantizeWeights)
    return StepOutput(*quantize_weights(model, step, calibration))


def _store_weights(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.weights.int8_weights import store_int8_weights

    assert isinstance(step, StoreWeights)
    return StepOutput(*store_int8_weights(model, step, calibration))


def _convert_to_float16(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    from edgeopt.graph.float16 import convert_to_float16

    return StepOutput(convert_to_float16(model))


def _fuse_qlinear(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    count = fuse_qlinear(model)
    return StepOutput(model, (f"fuse: {count} nodes written as integer operators",) if count else ())


def _pack_weights(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    count = pack(model)
    return StepOutput(
        model, (f"pack-weights: {count} tensors of few bits, unpacked when the file is loaded",) if count else ()
    )


def _compact(step: GraphStep, model: onnx.ModelProto, calibration: Path | None) -> StepOutput:
    assert isinstance(step, Compact)
    count = write_transforms_as_convolutions(model) if step.convolves_transforms else 0
    notes = (f"compact: {count} short-time Fourier transforms written as convolutions",) if count else ()
    return StepOutput(model, notes, compact(model, keep_names=step.keep_names))


STEPS: dict[type[GraphStep], StepFunction] = {
    DropUnseenRows: StepFunction(_drop_unseen_rows, in_subprocess=False),
    Simplify: StepFunction(_simplify, in_subprocess=True),
    FlushDenormals: StepFunction(_flush_denormals, in_subprocess=False),
    Quantize: StepFunction(_quantize, in_subprocess=True),
    QuantizeDynamic: StepFunction(_quantize_dynamic, in_subprocess=True),
    QuantizeWeights: StepFunction(_quantize_weights, in_subprocess=True),
    StoreWeights: StepFunction(_store_weights, in_subprocess=True),
    PackWeights: StepFunction(_pack_weights, in_subprocess=False),
    Float16: StepFunction(_convert_to_float16, in_subprocess=True),
    FuseQLinear: StepFunction(_fuse_qlinear, in_subprocess=False),
    Compact: StepFunction(_compact, in_subprocess=False),
}


def apply_step(step: GraphStep, source: Path, target: Path, calibration: Path | None) -> Remarks:
    """Apply one step in this process: read ``source``, write ``target``."""
    given = load(source, name_of(step))
    widened = isinstance(step, QuantizeStep) and has_half_weights(given) and widen_halves(given)
    done = STEPS[type(step)].run(step, given, calibration)
    notes = done.notes
    if widened:
        notes = (f"{name_of(step)}: from float32, to which 16-bit weights were widened first", *notes)
    lower_ir(done.model)
    save(done.model, target)
    return Remarks(notes, done.names)


def name_of(step: GraphStep) -> str:
    """Return a step's tag, such as ``flush-denormals``."""
    return str(step.__struct_config__.tag)

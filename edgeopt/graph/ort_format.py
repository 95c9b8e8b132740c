"""Writes a model in ONNX Runtime's own format, with the operators and types that a reduced runtime has to have.

The session is the one that ``onnxruntime.tools.convert_onnx_models_to_ort`` opens, and the list of operators comes from
the same package. That tool has no way to leave constants as they are stored, and takes its level from the environment.

A runtime does not optimize such a file when it loads it: what is not fused or computed here is computed in every run.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from edgeopt.records.profile import GraphLevel, OrtPlatform

_LEVELS: dict[GraphLevel, str] = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_PROCESSOR_LAYOUTS = ("NchwcTransformer",)
"""Optimizers that lay weights out for the vectors of the processor that they run on."""
_FOLDING = "ConstantFolding"
_HEADER = "# Operators and types of {name}: for ONNX Runtime's build.sh --include_ops_by_config\n"


def write_ort_format(
    source: Path, target: Path, operators: Path, *, level: GraphLevel, platform: OrtPlatform, folds: bool
) -> None:
    """Write a model in ONNX Runtime's own format, and the list of its operators.

    Args:
        source: An ``.onnx`` in one file.
        target: Path of the ``.ort``.
        operators: Path of the list.
        level: How far the graph is optimized.
        platform: Processors that have to run the file.
        folds: Whether constants are computed now, such as weights that are stored in few bits; otherwise in each run.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    # On Arm, int8 activations have integer kernels; x86 computes the same with them, slower than in float.
    options.add_session_config_entry("session.qdqisint8allowed", "0" if platform == "amd64" else "1")
    left_out = [*(() if platform == "amd64" else _PROCESSOR_LAYOUTS), *(() if folds else (_FOLDING,))]
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
    _write_operators(target, operators)


def _write_operators(model: Path, operators: Path) -> None:
    """Write the list of operators of an ``.ort``; the tool's own comment names the folder of this machine."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    create_config_from_models([model], operators, True)
    lines = operators.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("#")]
    operators.write_text(_HEADER.format(name=model.name) + "".join(kept), encoding="utf-8")

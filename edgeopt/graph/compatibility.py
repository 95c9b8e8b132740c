"""Checks that a stage's result is one valid file that the target's runtime can load."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.helper

from edgeopt.errors import StepError
from edgeopt.graph.model import load, read_opset, walk_graphs
from edgeopt.model_files.tensors import copy_model_proto, weights_as_inputs

_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operator sets in the released builds of ONNX Runtime."""
_FIRST_IR_WITH_OWN_WEIGHTS = 4
"""Version of the file format from which on a weight need not be an input too."""


def check_compatibility(path: Path, max_opset: int, max_ir: int, *, stage: str = "compatibility") -> None:
    """Check one file.

    Raises:
        StepError: it needs other files, is invalid, or the target's runtime would not load it.
    """
    reason = find_incompatibility(load(path, stage), max_opset, max_ir)
    if reason is not None:
        raise StepError(stage, f"{path.name} {reason}")


def find_incompatibility(model: onnx.ModelProto, max_opset: int, max_ir: int) -> str | None:
    """Return why the target's runtime would not load a model, in words that follow its name; None if it would."""
    if read_opset(model) > max_opset or model.ir_version > max_ir:
        return (
            f"has operator set {read_opset(model)} and IR {model.ir_version}; the target loads at most {max_opset} and "
            f"{max_ir}.{_newest_operators(model, max_ir)} Raise max_opset, max_ir and min_onnxruntime in the profile."
        )
    foreign = find_foreign_operators(model)
    if foreign:
        return f"uses operators that ONNX Runtime does not have: {', '.join(foreign)}."
    try:
        onnx.checker.check_model(_as_runtime_reads(model))
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        return f"is not valid: {str(error).splitlines()[0]}"
    return None


def _as_runtime_reads(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without large weights, with what ONNX's checker asks for and ONNX Runtime does not.

    That is a shape of each input and output, and in the oldest files an input for each weight.
    """
    light = weights_as_inputs(model)
    places = [index for index, value in enumerate(_ends(light)) if _lacks_shape(value)]
    if not places and light.ir_version >= _FIRST_IR_WITH_OWN_WEIGHTS:
        return light
    light = copy_model_proto(light)
    light.ir_version = max(light.ir_version, _FIRST_IR_WITH_OWN_WEIGHTS)
    ends = _ends(light)
    for index in places:
        ends[index].type.tensor_type.shape.SetInParent()
    return light


def _ends(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.output]


def _lacks_shape(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"))


def check_portable(path: Path, *, stage: str = "compatibility") -> None:
    """Check that a file has only operators that other runtimes and accelerators know.

    Raises:
        StepError: it has integer operators of ONNX Runtime's CPU provider.
    """
    graphs = walk_graphs(load(path, stage).graph)
    own = {node.op_type for graph in graphs for node in graph.node if _is_of_runtime(node)}
    if own:
        raise StepError(
            stage,
            f"{path.name} has {', '.join(sorted(own))}, which only ONNX Runtime's CPU provider runs; the target's "
            'operators are "qdq".',
        )


def _is_of_runtime(node: onnx.NodeProto) -> bool:
    own = node.domain == "com.microsoft" or node.op_type in ("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
    return own or node.op_type.startswith("QLinear")


def _newest_operators(model: onnx.ModelProto, max_ir: int) -> str:
    """Name the operators of other domains that need a newer IR, as ``ai.onnx.ml`` has; empty if there are none."""
    too_new = {
        entry.domain: entry.version
        for entry in model.opset_import
        if entry.domain and onnx.helper.find_min_ir_version_for([entry], ignore_unknown=True) > max_ir
    }
    used = {
        f"{node.op_type} ({node.domain} {too_new[node.domain]})"
        for graph in walk_graphs(model.graph)
        for node in graph.node
        if node.domain in too_new
    }
    return f" It needs the latter for {', '.join(sorted(used))}." if used else ""


def find_foreign_operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of domains that released builds of ONNX Runtime lack, as ``DOMAIN.OPERATOR``.

    Functions that the model itself defines are not among them.
    """
    defined = {(function.domain, function.name) for function in model.functions}
    nodes = [node for graph in walk_graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node in nodes
            if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in defined
        }
    )

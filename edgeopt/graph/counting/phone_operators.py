"""How many nodes the execution providers of phones would run, by ONNX Runtime's own lists of operators."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from edgeopt.graph.model import inner_graphs, walk_graphs
from edgeopt.records.base import Record

_logger = logging.getLogger(__name__)


class PhoneOperators(Record, frozen=True, kw_only=True):
    """What a provider would run of a model at fixed shapes, judged by the types of operators alone."""

    provider: str
    about: str
    nodes: int
    """Of the file, before ONNX Runtime's optimizations; without those that only compute constants, on loading."""
    listed_nodes: int
    """Those with operators that the provider has."""
    parts: int
    """Runs of such nodes; between two of them tensors go back to the processor."""
    unlisted_operators: dict[str, int]
    """How many nodes have an operator that the provider lacks, the most frequent one first."""


_LISTS = {
    "CoreMLExecutionProvider": ("coreml_supported_mlprogram_ops.md", "as an ML program, iOS 15 and later"),
    "NnapiExecutionProvider": ("nnapi_supported_ops.md", "deprecated since Android 15"),
}
"""From a provider to the file of its operators in ``onnxruntime.tools.mobile_helpers``, and what to know about it."""


_NEVER_FOLDED = ("DequantizeLinear", "RandomUniformLike", "RandomNormalLike", "Bernoulli", "Multinomial")
"""Operators that ONNX Runtime runs each time even if their inputs are constants; providers fuse the first one."""


def count_phone_operators(model: onnx.ModelProto) -> tuple[PhoneOperators, ...]:
    """Return what each provider would run of a model.

    ONNX Runtime's usability checker does not look at attributes and element types, so a provider may run less. Nothing
    is returned if this onnxruntime has no checker, or if it fails on the model.
    """
    try:
        from onnxruntime.tools.mobile_helpers import usability_checker as checker

        graph = _without_constants(model.graph, frozenset())
        return tuple(_count(checker, graph, name, *entry) for name, entry in _LISTS.items())
    except (ImportError, OSError, LookupError, TypeError, ValueError) as error:
        _logger.debug("no static check of phones' execution providers: %r", error)
        return ()


def _without_constants(graph: onnx.GraphProto, outer: frozenset[str]) -> onnx.GraphProto:
    """Return a copy without values of weights, and without nodes that ONNX Runtime computes on loading.

    Args:
        graph: Of a model, or of a branch or body in it.
        outer: Names of constants around it.
    """
    stored = [tensor.name for tensor in graph.initializer] + [tensor.values.name for tensor in graph.sparse_initializer]
    copy, constants = onnx.GraphProto(name=graph.name, input=graph.input, output=graph.output), outer.union(stored)
    for node in graph.node:
        if node.op_type == "Constant" or _is_folded(node, constants):
            constants = constants.union(node.output)
            continue
        kept = copy.node.add()
        kept.CopyFrom(node)
        for attribute in kept.attribute:
            if attribute.HasField("g"):
                attribute.g.CopyFrom(_without_constants(attribute.g, constants))
        if node.op_type == "Transpose" and not node.attribute:
            kept.attribute.add(name="perm")  # the checker looks at the first attribute
    copy.initializer.extend(onnx.TensorProto(name=name) for name in sorted(constants - outer))
    return copy


def _is_folded(node: onnx.NodeProto, constants: frozenset[str]) -> bool:
    names = set(filter(None, node.input))
    return bool(names) and names <= constants and node.op_type not in _NEVER_FOLDED and not inner_graphs(node)


def _count(checker: Any, graph: onnx.GraphProto, provider: str, file: str, about: str) -> PhoneOperators:
    operators = checker._SupportedOpsChecker(Path(checker.__file__).parent / file)
    found = checker.check_partitioning(graph, operators, require_fixed_input_sizes=False)
    unlisted = Counter(
        node.op_type for part in walk_graphs(graph) for node in part.node if not operators.is_op_supported(node)
    )
    return PhoneOperators(
        provider=provider, about=about, nodes=found.num_nodes, listed_nodes=found.num_supported_nodes,
        parts=found.num_partitions, unlisted_operators=dict(unlisted.most_common()),
    )  # fmt: skip

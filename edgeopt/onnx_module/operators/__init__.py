"""One small function per ONNX operator, in a table for each subject.

A function is ``(node, *inputs) -> outputs``; if an operator changed between operator sets, it asks ``node.opset``. To
add an operator: a function in the file of its subject and a line in that file's ``TABLE``, with the positions of
the inputs that are weights, or have to be known without running the graph. ``tests/onnx_module/test_conformance.py``
runs it on ONNX's own tests.
"""

from __future__ import annotations

from edgeopt.onnx_module.node import OWN_DOMAIN, Node, Operator
from edgeopt.onnx_module.operators import (
    contraction,
    convolution,
    elementwise,
    indexing,
    movement,
    normalization,
    pooling,
    recurrent,
    reductions,
    resizing,
    runtime,
)

_STANDARD: dict[str, Operator] = {
    **contraction.TABLE,
    **convolution.TABLE,
    **elementwise.TABLE,
    **indexing.TABLE,
    **movement.TABLE,
    **normalization.TABLE,
    **pooling.TABLE,
    **recurrent.TABLE,
    **reductions.TABLE,
    **resizing.TABLE,
}
_BY_DOMAIN: dict[str, dict[str, Operator]] = {
    "": _STANDARD,
    "com.microsoft": runtime.TABLE,
    OWN_DOMAIN: {**contraction.OWN_TABLE, **recurrent.OWN_TABLE},
}


def operator_for(node: Node) -> Operator | None:
    """Return how a node is computed; None if its operator is not known."""
    return _BY_DOMAIN.get(node.domain, {}).get(node.operator)

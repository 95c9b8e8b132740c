"""One rule for each operator: what it does to labels.

A rule is a function ``(labels, call) -> layers`` (or a list of layers for an operator with several results). It may
unite or freeze labels; it never changes them. To add an operator:

1. Say what it means for channels. Example, ``aten.glu(x, dim)``: the two halves of ``x`` along ``dim`` are multiplied,
   so channel ``j`` of the result needs channels ``j`` and ``j + n`` of the input, which go together.
2. Write the rule in the file of its family::

       def glu(labels: Labels, call: Call) -> Layers:
           dim, half = call.dim(), call.shape[call.dim()]
           for layer in call.input.layers:
               if layer.shape[dim] > 1:
                   labels.unite(layer.narrow(dim, 0, half), layer.narrow(dim, half, half))
           return tuple(layer.narrow(dim, 0, min(half, layer.shape[dim])) for layer in call.input.layers)

3. Enter it in that file's table: ``aten.glu: glu``.
4. Only where the operator holds a size as a literal number: enter it in ``resize.py``. Only where it computes something
   over channels (as a norm does): enter it in ``proof.KEPT_ALONE``.
5. Add an architecture that has it to ``benchmarks/zoo``: the tests prove it at 30 % and 50 %.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeopt.passes.prune.rules import contraction, elementwise, movement, normalisation, recurrent, reductions
from edgeopt.passes.prune.rules.call import Rule

RULES: dict[Any, Rule] = {
    **movement.RULES,
    **elementwise.RULES,
    **contraction.RULES,
    **normalisation.RULES,
    **reductions.RULES,
    **recurrent.RULES,
}


def rule_for(target: Any) -> Rule | None:
    """Find an operator's rule: in the table, else the common one for what torch tags as element-wise."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    rule = RULES.get(target.overloadpacket)
    if rule is None and torch.Tag.pointwise in target.tags:
        return elementwise.elementwise
    return rule

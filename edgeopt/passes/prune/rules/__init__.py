"""One rule per operator: the operator's effect on labels.

A rule is a function ``(labels, call) -> layers`` (or a list of layers for an operator with several results). It may
unite or freeze labels; it never changes them. To add an operator:

1. Say what it means for channels. Example, ``aten.glu(x, dim)``: the two halves of ``x`` along ``dim`` are multiplied,
   so channel ``j`` of the result needs channels ``j`` and ``j + n`` of the input, which go together.
2. Write the rule in the file of its family. It can use ``match`` (operands meet element by element), ``contract``
   (multiply and sum over named dimensions), ``sum_over`` (labels end along dimensions), ``make_independent`` (labels
   freeze along dimensions), or the operator itself, executed on labels::

       def glu(labels: Labels, call: Call) -> Layers:
           dim = call.dim()
           layers = [layer.chunk(2, dim) if layer.shape[dim] > 1 else (layer, layer) for layer in call.input.layers]
           halves = [Marked(call.shape, half) for half in zip(*layers, strict=True)]
           return match(labels, halves, call.shape)

3. Add it to that file's table: ``aten.glu: glu``.
4. If the operator holds a size as a literal number, add it to ``resize.RESIZE``. If it computes over channels (as a
   norm does), add it to the tables of ``masked.py``.
5. Add the smallest network that has it to ``tests/passes/rule_networks.py``, ``operator_networks.py`` or (if it takes
   a few lines as its authors write it) ``field_networks.py``, and an architecture to ``benchmarks/zoo``. The tests
   prune both by 30 % and 50 % and prove the results.

An operator that no rule could let channels through is in ``frozen``, with the reason. One that PyTorch computes by
others (a composite one, such as ``tensordot``) needs no rule: ``trace`` replaces it by these.

A rule does not decide which dimension of a view shrinks (heads or their depth, groups or their channels):
``resolve_couplings`` does, at the end.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeopt.passes.aten import plain_form
from edgeopt.passes.prune.rules import (
    complex_values,
    contraction,
    distances,
    elementwise,
    frozen,
    movement,
    normalization,
    picking,
    recurrent,
    reductions,
    writing,
)
from edgeopt.passes.prune.rules.call import Rule

RULES: dict[Any, Rule] = {
    **movement.RULES,
    **elementwise.RULES,
    **contraction.RULES,
    **normalization.RULES,
    **reductions.RULES,
    **recurrent.RULES,
    **writing.RULES,
    **distances.RULES,
    **complex_values.RULES,
    **frozen.RULES,
    **picking.RULES,
}


def rule_for(target: Any) -> Rule | None:
    """Return an operator's rule: the one in the table, or the common one if torch tags the operator as element-wise.

    An operator that writes in place (``add_``) has the rule of the one that does not.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return None
    for packet in (target.overloadpacket, plain_form(target.overloadpacket)):
        if packet in RULES:
            return RULES[packet]
        if is_element_wise(packet):
            return elementwise.elementwise
    return None


def is_element_wise(packet: Any) -> bool:
    """Tell whether torch tags an operator as pointwise."""
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())

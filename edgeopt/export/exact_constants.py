"""Keeps the constants of a module in what the dynamo exporter writes.

onnxscript's optimizer compares a constant with that of a rule to 1e-8, so ``x + 1e-9`` passes for ``x + 0`` and goes:
``x / (x.sum() + 1e-9)`` becomes 0 / 0, and ``log(x + 1e-9)`` becomes log 0. Here a constant has to be equal but for the
rounding of float32.

It also names a rule's new constants after the rule's input. If a value is clipped to several ranges, the limits of the
last one take the place of the others. Here each gets a name of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnxscript.rewriter import RewriteRule
from onnxscript.rewriter._matcher import SimplePatternMatcher

_ROUNDING_RATIO = float(np.finfo(np.float32).eps)


@contextlib.contextmanager
def exact_constants() -> Iterator[None]:
    """Let the optimizer's rules take only equal constants for equal, and lose none, for the length of a block."""
    matcher_class: Any = SimplePatternMatcher
    rule_class: Any = RewriteRule
    match_constant, try_rewrite = matcher_class._match_constant, rule_class.try_rewrite

    def match(matcher: Any, constant: Any, value: Any) -> bool:
        before = constant._abs_tol, constant._rel_tol
        constant._abs_tol, constant._rel_tol = 0.0, min(constant._rel_tol, _ROUNDING_RATIO)
        try:
            return bool(match_constant(matcher, constant, value))
        finally:
            constant._abs_tol, constant._rel_tol = before

    def rewrite(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        replacement = try_rewrite(rule, model, graph, node, **options)
        if replacement is not None and options.get("tracer") is None:
            _name_apart(graph, replacement)
        return replacement

    matcher_class._match_constant, rule_class.try_rewrite = match, rewrite
    try:
        yield
    finally:
        matcher_class._match_constant, rule_class.try_rewrite = match_constant, try_rewrite


def _name_apart(graph: Any, replacement: Any) -> None:
    """Rename new constants that would take the place of one that nodes besides the replaced ones still read."""
    replaced = set(replacement.match.nodes)
    for constant in replacement.new_initializers:
        name, number = constant.name, 0
        while any(use.node not in replaced for use in _uses(graph, constant.name)):
            number += 1
            constant.name = f"{name}_{number}"


def _uses(graph: Any, name: str) -> Any:
    return graph.initializers[name].uses() if name in graph.initializers else ()

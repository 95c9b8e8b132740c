"""Keeps small constants in what the dynamo exporter writes.

onnxscript's optimizer compares a constant with that of a rule to 1e-8, so ``x + 1e-9`` passes for ``x + 0`` and goes:
``x / (x.sum() + 1e-9)`` becomes 0 / 0, and ``log(x + 1e-9)`` becomes log 0. Here a constant has to be equal but for the
rounding of float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnxscript.rewriter._matcher import SimplePatternMatcher

_ROUNDING_RATIO = float(np.finfo(np.float32).eps)


@contextlib.contextmanager
def exact_constants() -> Iterator[None]:
    """Let the optimizer's rules take only equal constants for equal, for the length of a block."""
    rules: Any = SimplePatternMatcher
    original = rules._match_constant

    def match(matcher: Any, constant: Any, value: Any) -> bool:
        before = constant._abs_tol, constant._rel_tol
        constant._abs_tol, constant._rel_tol = 0.0, min(constant._rel_tol, _ROUNDING_RATIO)
        try:
            return bool(original(matcher, constant, value))
        finally:
            constant._abs_tol, constant._rel_tol = before

    rules._match_constant = match
    try:
        yield
    finally:
        rules._match_constant = original

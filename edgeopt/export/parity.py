"""Parity: how far the outputs of one stage are from those of the stage before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import ParityError
from edgeopt.records.trial import Parity

LEAST_CHANGE = 1 / 255
"""A step of int8."""


def compare_arrays(
    expected: Sequence[NDArray[Any]], actual: Sequence[NDArray[Any]], *, stage: str, tolerance: float | None
) -> Parity:
    """Compare the outputs of two stages on the same inputs.

    Args:
        expected: Outputs of the stage before, in order.
        actual: Outputs of ``stage``, in the same order.
        stage: What ``actual`` comes from, such as ``simplified``.
        tolerance: Largest relative error that passes; None where the score judges instead.

    Returns:
        The largest absolute and the largest relative error over all outputs; relative to that output's largest
        absolute value.

    Raises:
        ParityError: another number of outputs, another shape, a value that is not finite, or an error above the
            tolerance; the message names the output by its position.
    """
    if len(expected) != len(actual):
        raise ParityError(stage, f"gives {len(actual)} outputs where the stage before gave {len(expected)}.")
    errors = [_error(old, new, stage, index) for index, (old, new) in enumerate(zip(expected, actual, strict=True))]
    for index, (_, relative) in enumerate(errors):
        if tolerance is not None and relative > tolerance:
            raise ParityError(
                stage, f"output {index} is off by {relative:.2g} of its largest value; {tolerance:.2g} is allowed."
            )
    return Parity(
        stage=stage,
        max_abs_error=max((absolute for absolute, _ in errors), default=0.0),
        max_rel_error=max((relative for _, relative in errors), default=0.0),
        tolerance=tolerance,
    )


def unexplained_share(
    floats: Sequence[NDArray[Any]], imitated: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]
) -> float:
    """Return how much of what int8 changes a module that imitates it does not account for: root mean squares.

    The largest over the outputs. A change below ``LEAST_CHANGE`` of an output's largest value counts as that much.
    One value that an integer kernel rounds to the next step decides nothing here, as it would in a largest difference.

    Example: int8 moves an output from 1.00 to 1.10, and the module that imitates it says 1.09: a tenth.
    """
    shares = []
    for plain, module, file in zip(floats, imitated, found, strict=True):
        changed, missed = (_root_mean_square(file - one) for one in (plain, module))
        shares.append(missed / max(changed, LEAST_CHANGE * float(np.abs(plain).max(initial=0.0)), 1e-30))
    return max(shares, default=0.0)


def _root_mean_square(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean())) if values.size else 0.0


def _error(expected: NDArray[Any], actual: NDArray[Any], stage: str, index: int) -> tuple[float, float]:
    """Return the absolute and the relative error of one output."""
    if expected.shape != actual.shape:
        raise ParityError(
            stage, f"output {index} has shape {actual.shape} where the stage before gave {expected.shape}."
        )
    if expected.size == 0:
        return 0.0, 0.0
    old, new = expected.astype(np.float64), actual.astype(np.float64)
    for name, values in (("the stage before gave", old), ("has", new)):
        if not np.isfinite(values).all():
            count = int(np.size(values) - np.isfinite(values).sum())
            raise ParityError(stage, f"output {index}: {name} {count} of {values.size} values that are not finite.")
    absolute = float(np.abs(old - new).max())
    largest = float(np.abs(old).max())
    return absolute, absolute / largest if largest > 0 else absolute

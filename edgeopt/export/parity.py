"""Parity: how far a file's outputs are from the outputs of the network itself, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import ParityError
from edgeopt.export.edge_inputs import LARGE
from edgeopt.records.trial import EdgeInput, Parity

ROUNDING_FACTOR = 10.0
"""How far a file may be from its network, over the network's own error of rounding. PyTorch sums in pairs and ONNX
Runtime in order, which rounds some seven times worse over 512 values."""
MAX_WIDE_TOLERANCE = 0.05
"""No error of rounding lets more pass: beyond it, a comparison shows nothing."""
_MIN_CHANGE_RATIO = 1 / 255
"""Smallest change by int8 that counts, over an output's largest value: one step."""
_SIGMOID_ERROR = 1.5e-7
"""ONNX Runtime's sigmoid adds one half in float32, so a small probability has an error of a few times 3e-8."""


def widen_tolerance(tolerance: float, rounding: float) -> float:
    """Return the tolerance on an output that rounding alone changes by a share ``rounding``.

    Some networks magnify the rounding of float32: a variance computed as the mean of squares less the square of the
    mean, and then divided by, moves a probability by 0.005. Two runtimes that are both right differ by as much.

    Args:
        tolerance: On the largest difference over an output's largest value, for any other output.
        rounding: The largest relative difference between the network's output in float32 and in float64.
    """
    return max(tolerance, min(ROUNDING_FACTOR * rounding, MAX_WIDE_TOLERANCE))


def compare_arrays(
    expected: Sequence[NDArray[Any]],
    actual: Sequence[NDArray[Any]],
    *,
    stage: str,
    tolerance: float | None,
    names: Sequence[str] = (),
    rounding: Mapping[str, float] | None = None,
) -> Parity:
    """Compare a file's outputs with those of the network, on the same inputs.

    Args:
        expected: Outputs of the network, in order.
        actual: Outputs of the file, in the same order.
        stage: The stage that made the file, such as ``simplified``.
        tolerance: Largest relative error allowed; None if the score decides instead.
        names: Of the outputs of one batch; the arrays are those of batch after batch.
        rounding: The network's own error of rounding by output, which widens the tolerance; see ``widen_tolerance``.

    Returns:
        The largest absolute and the largest relative error over all outputs, and the latter of each named output.
        Relative errors are relative to the output's largest absolute value. Values in 0..1 may be probabilities, of
        which a runtime knows no more than a few times 1e-8.

    Raises:
        ParityError: the number of outputs or a shape differs, a value is not finite, or an error exceeds the
            tolerance; the message names the output by its position.
    """
    if len(expected) != len(actual):
        raise ParityError(stage, f"has {len(actual)} outputs; the network has {len(expected)}.")
    errors = [
        _compare_output(old, new, stage, index) for index, (old, new) in enumerate(zip(expected, actual, strict=True))
    ]
    widest = tolerance
    for index, (_, relative) in enumerate(errors):
        if tolerance is None or widest is None:
            break
        allowed = widen_tolerance(tolerance, rounding.get(names[index % len(names)], 0.0)) if rounding else tolerance
        widest = max(widest, allowed)
        if relative > allowed:
            raise ParityError(
                stage, f"output {index} is off by {relative:.2g} of its largest value; {allowed:.2g} is allowed."
            )
    return Parity(
        stage=stage,
        max_abs_error=max((absolute for absolute, _ in errors), default=0.0),
        max_rel_error=max((relative for _, relative in errors), default=0.0),
        tolerance=widest,
        by_output=_by_output(names, [relative for _, relative in errors]) if len(names) > 1 else None,
    )


def _by_output(names: Sequence[str], errors: Sequence[float]) -> dict[str, float]:
    return {name: max(errors[index :: len(names)], default=0.0) for index, name in enumerate(names)}


def check_edge_outputs(
    expected: Sequence[NDArray[Any]],
    actual: Sequence[NDArray[Any]],
    edge: EdgeInput,
    *,
    stage: str,
    tolerance: float | None,
) -> None:
    """Compare a file's outputs with those of the network on one batch of edge inputs.

    They have to be finite, as the network's are, and within ``tolerance`` if the network's are steady. Large inputs
    count only then: int8 and float16 have ranges, which the examples set.

    Args:
        expected: Outputs of the network.
        actual: Outputs of the file.
        edge: The inputs.
        stage: The stage that made the file.
        tolerance: As in ``compare_arrays``; None if the stage changes values.

    Raises:
        ParityError: names the output, and the inputs that show it.
    """
    exact = tolerance is not None and edge.steady
    if edge.kind == LARGE and not exact:
        return
    try:
        compare_arrays(expected, actual, stage=stage, tolerance=tolerance if exact else None)
    except ParityError as error:
        raise ParityError(
            stage,
            f"{error.reason.removesuffix('.')} if {edge.kind}, and the network's own are right there: a small constant "
            "was lost, or a sum leaves the range of its type.",
        ) from error


def unexplained_ratio(
    floats: Sequence[NDArray[Any]], imitated: Sequence[NDArray[Any]], actual: Sequence[NDArray[Any]]
) -> float:
    """Return the share of int8's change that a module imitating int8 does not reproduce.

    This is a ratio of root mean squares, and the largest over all outputs. A change below ``_MIN_CHANGE_RATIO`` of an
    output's largest value counts as that much. Unlike a largest difference, the result hardly depends on a single value
    that an integer kernel rounds to the next step.

    Args:
        floats: Outputs of the float network.
        imitated: Outputs of the module that imitates int8.
        actual: Outputs of the int8 file.

    Example: int8 changes an output from 1.00 to 1.10 and the module's output is 1.09: the result is a tenth.
    """
    ratios = []
    for plain, module, file in zip(floats, imitated, actual, strict=True):
        changed, missed = _root_mean_square(file - plain), _root_mean_square(file - module)
        ratios.append(missed / max(changed, _MIN_CHANGE_RATIO * float(np.abs(plain).max(initial=0.0)), 1e-30))
    return max(ratios, default=0.0)


def _root_mean_square(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean())) if values.size else 0.0


def _compare_output(expected: NDArray[Any], actual: NDArray[Any], stage: str, index: int) -> tuple[float, float]:
    """Return the absolute and the relative error of one output."""
    if expected.shape != actual.shape:
        raise ParityError(stage, f"output {index} has shape {actual.shape}; the network's has {expected.shape}.")
    if expected.size == 0:
        return 0.0, 0.0
    old, new = expected.astype(np.float64), actual.astype(np.float64)
    for owner, values in (("of the network ", old), ("", new)):
        if not np.isfinite(values).all():
            count = int(np.size(values) - np.isfinite(values).sum())
            raise ParityError(stage, f"output {index} {owner}has {count} of {values.size} values that are not finite.")
    absolute = float(np.abs(old - new).max())
    largest = float(np.abs(old).max())
    may_be_probabilities = all(values.min() >= 0 and values.max() <= 1 for values in (old, new))
    counted = max(0.0, absolute - _SIGMOID_ERROR) if may_be_probabilities else absolute
    return absolute, counted / largest if largest > 0 else counted

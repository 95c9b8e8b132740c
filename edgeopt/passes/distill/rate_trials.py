"""Trials of learning rates: how fast a network may be trained without losing what it knows.

A network that was cut and fitted (``edgeopt.passes.reconstruct``) is near its teacher already. A rate that suits one
with random weights throws it far back, and the training may never make up for it. In a trial, a few steps are made from
the start; the highest rate after which the loss is no larger than before is taken. Losses in evaluation mode are
compared: that is how the network will run, and batch norm in training mode computes something else.
"""

from __future__ import annotations

from collections.abc import Callable

RATE_DIVISORS = (1.0, 3.0, 10.0, 30.0)
"""Rates that are tried: the given one over each of these, the highest first."""
TRIAL_STEPS = 20
WARMUP_STEPS = 5
"""Of a trial: the rate rises from zero, as in a training."""
JUDGED_BATCHES = 4
_TOLERANCE_RATIO = 0.1
"""By which a loss may be larger after a trial: steps at a good rate are noisy, too."""


def choose_rate(highest: float, loss_at_start: float, loss_after: Callable[[float], float]) -> float:
    """Return the highest rate that does not raise the loss, or the lowest one if the others all raise it.

    Args:
        highest: The rate that is tried first.
        loss_at_start: Of the network as it is.
        loss_after: Of the network after a trial at a rate.
    """
    rates = [highest / divisor for divisor in RATE_DIVISORS]
    allowed = loss_at_start + _TOLERANCE_RATIO * abs(loss_at_start)
    return next((rate for rate in rates[:-1] if loss_after(rate) <= allowed), rates[-1])

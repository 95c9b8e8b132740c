"""Logits of outputs that may be probabilities already, because the network ends in a softmax or a sigmoid.

Logits of probabilities are float32: 16 bits have no number so near to 1 as the limit that keeps them finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SUM_TOLERANCE = 1e-3
_SMALLEST_PROBABILITY = 1e-7
"""Its logarithm is the largest loss of a sample, as for a logit of 16."""


def are_probabilities(scores: Tensor) -> bool:
    """Tell whether the values along dimension 1 are probabilities of classes: none negative, and they add up to 1."""
    with torch.no_grad():
        return bool((scores >= 0).all()) and bool(((at_least_float32(scores).sum(1) - 1).abs() < _SUM_TOLERANCE).all())


def class_logits(scores: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Return scores of classes ``(batch, classes, ...)`` as logits: the logarithms of probabilities, or as they are.

    Args:
        scores: Of a network.
        like: Decides whether they are probabilities, ``scores`` if None.
    """
    is_softmax = are_probabilities(scores if like is None else like)
    return at_least_float32(scores).clamp_min(_SMALLEST_PROBABILITY).log() if is_softmax else scores


def yes_logits(values: Tensor, threshold: float) -> Tensor:
    """Return answers of yes or no as logits: values are probabilities if a yes is above ``threshold`` 0.5."""
    return at_least_float32(values).logit(_SMALLEST_PROBABILITY) if threshold else values


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are that."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

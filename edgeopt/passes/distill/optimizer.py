"""The optimizer of a training, and its learning rate at each moment."""

from __future__ import annotations

import math

import torch
from torch import nn

from edgeopt.records.recipe import Distill

_MOMENTUM = 0.9


def learning_rate(step: Distill, progress: float) -> float:
    """Return the rate at ``progress`` (0..1): linear warm-up, then a cosine to zero (Loshchilov and Hutter, 2017)."""
    if progress < step.warmup_ratio:
        return step.learning_rate * progress / step.warmup_ratio
    done = (progress - step.warmup_ratio) / (1 - step.warmup_ratio)
    return step.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(step: Distill, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of a ``Distill`` step."""
    if step.optimizer == "adamw":
        return torch.optim.AdamW(parameters, step.learning_rate, weight_decay=step.weight_decay)
    return torch.optim.SGD(
        parameters, step.learning_rate, momentum=_MOMENTUM, weight_decay=step.weight_decay, nesterov=True
    )

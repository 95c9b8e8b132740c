"""The tiny task with a network that int8 harms: one scale has to cover channels whose ranges are far apart."""

import tiny_task
import torch
from torch import nn

import edgeopt

SPREAD = 400.0
"""Ratio between the widest and the narrowest channel."""


def spread_channels(network: tiny_task.TinyNet, spread: float) -> nn.Module:
    """Scale the channels of the skip connection, and scale the layers that read them back: the outputs stay."""
    width = network.head.in_features // 4
    factor = spread ** -torch.linspace(0, 1, width)[torch.randperm(width, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        for norm in (network.stem[1], network.body[1]):
            norm.weight *= factor
            norm.bias *= factor
        network.body[0].weight /= factor.reshape(1, -1, 1, 1)
        network.head.weight /= factor.repeat_interleave(4)
    return network


def task(spread: float = SPREAD, samples: int = 512):
    """Return the task, without students.

    ``samples`` is the size of its training set.
    """
    return edgeopt.classification(
        lambda: spread_channels(tiny_task.trained(), spread),
        lambda seed: tiny_task.batches(samples, seed),
        tiny_task.batches(512, 1000),
        name="tiny-spread",
        training=edgeopt.Training(epochs=3, learning_rate=0.05, min_steps=0),
    )


def harmed():
    """Return the task whose network int8 ruins: the score drops by 0.32."""
    return task(spread=10 * SPREAD, samples=2048)  # with 512, a quick build's two epochs recover int8 to just the limit

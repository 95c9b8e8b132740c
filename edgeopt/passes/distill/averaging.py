"""Averaged weights: an exponential moving average over the steps of a training (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The moving average of a module's parameters and buffers.

    Args:
        module: The module.
        decay: Of the average, 0..1, in each step. The first steps have less, ``(1 + steps) / (10 + steps)``, because
            the weights of the start are not worth keeping.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.steps = 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's current weights into the average; integers are copied."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    def apply_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Set to zero what is zero in the module: the average of the weights before would not be."""
        for name, mask in masks.items():
            if name in self.values:
                self.values[name] *= mask

    def restore(self, values: dict[str, Tensor], steps: int) -> None:
        """Continue from a checkpoint."""
        self.steps = steps
        for name, value in values.items():
            self.values[name].copy_(value)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Run a block with the averaged weights in the module, then put its own back."""
        own = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.values)
        try:
            yield
        finally:
            self.module.load_state_dict(own)

"""Tiny networks for tests that try every tensor; each has a feature that pruning by labels must handle."""

from __future__ import annotations

from benchmarks.zoo.architecture import Builder
from benchmarks.zoo.miniatures import attention, convolutional, plain

MINIATURES: dict[str, Builder] = {
    "resnet": convolutional.resnet,
    "mobilenet": convolutional.mobilenet,
    "shufflenet": convolutional.shufflenet,
    "densenet": convolutional.densenet,
    "squeeze_excite": convolutional.squeeze_excite,
    "grouped": convolutional.grouped,
    "unet": convolutional.unet,
    "conv1d": convolutional.conv1d,
    "mlp": plain.mlp,
    "flatten": plain.flatten,
    "tied": plain.tied,
    "two_heads": plain.two_heads,
    "transformer": attention.transformer,
}
"""Name to a function that returns a model with random weights and its example inputs, with a batch of 1 or more."""

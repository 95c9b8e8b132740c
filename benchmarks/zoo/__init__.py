"""Small architectures, each with something that pruning by labels has to get right. Name to a builder."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.zoo import attention, convolutional, plain

Builder = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]

ZOO: dict[str, Builder] = {
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
"""Name to a function that returns a model (random weights) and its example inputs, with a batch of 1 or more."""

"""Networks for 28x28 gray images, one for each kind that quantization treats differently, of 0.2 to 0.6 M parameters.

Unlike the rest of the zoo, they are large enough to train, and for the sizes and latencies of their files to be
meaningful.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgeopt.tasks.networks.resnet import SmallResNet

CLASSES = 10


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size (or divides it by the stride), and its batch norm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


def head(channels: int) -> list[nn.Module]:
    """Return global pooling and the logits."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def plain() -> nn.Module:
    """3x3 convolutions and max pooling (Simonyan and Zisserman, 2015)."""
    layers: list[nn.Module] = []
    before = 1
    for width in (32, 64, 128):
        layers += [*conv(before, width, 3), nn.ReLU(), *conv(width, width, 3), nn.ReLU(), nn.MaxPool2d(2)]
        before = width
    return nn.Sequential(*layers, *head(before))


def residual() -> nn.Module:
    """The default task's network at half the width (He et al., 2016)."""
    return SmallResNet(stem=24, widths=(24, 48, 96))


class Gate(nn.Module):
    """A factor for each channel, computed from the whole image (Hu et al., 2018)."""

    def __init__(self, channels: int, squeezed: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), act(), nn.Conv2d(squeezed, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        y: Tensor = x * self.layers(x)
        return y


class Inverted(nn.Module):
    """Expand, depthwise, gate, project, with a skip (Sandler et al., 2018; Howard et al., 2019)."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, act: type[nn.Module], gate: type[nn.Module] | None
    ) -> None:
        super().__init__()
        wide = inputs * 4
        self.skip = stride == 1 and inputs == outputs
        gates = [] if gate is None else [Gate(wide, max(8, inputs // 2), nn.ReLU, gate)]
        self.layers = nn.Sequential(
            *conv(inputs, wide, 1), act(), *conv(wide, wide, 3, stride, wide), act(), *gates, *conv(wide, outputs, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape, or halve it."""
        y: Tensor = self.layers(x)
        return x + y if self.skip else y


def _inverted(act: type[nn.Module], gate: type[nn.Module] | None) -> nn.Module:
    sizes = ((24, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1))
    blocks = [Inverted(inputs, outputs, stride, act, gate) for inputs, outputs, stride in sizes]
    return nn.Sequential(*conv(1, 24, 3), act(), *blocks, *conv(64, 256, 1), act(), *head(256))


def depthwise() -> nn.Module:
    """MobileNetV2: depthwise convolutions and ReLU6."""
    return _inverted(nn.ReLU6, None)


def hard_swish() -> nn.Module:
    """MobileNetV3: hard-swish, and squeeze-excite with a hard sigmoid."""
    return _inverted(nn.Hardswish, nn.Hardsigmoid)


def silu() -> nn.Module:
    """EfficientNet: SiLU, and squeeze-excite with a sigmoid."""
    return _inverted(nn.SiLU, nn.Sigmoid)


class Attention(nn.Module):
    """A vision transformer on 4x4 patches (Dosovitskiy et al., 2021)."""

    def __init__(self, width: int = 96, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 49, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, 4, 3 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(batch, 1, 28, 28)`` to logits ``(batch, 10)``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class Recurrent(nn.Module):
    """Two LSTM layers over the rows of the image."""

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self.cells = nn.LSTM(28, width, 2, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(batch, 1, 28, 28)`` to logits ``(batch, 10)``."""
        states, _ = self.cells(x.squeeze(1))
        logits: Tensor = self.head(states[:, -1])
        return logits


FASHION: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "residual": residual,
    "depthwise": depthwise,
    "hard_swish": hard_swish,
    "silu": silu,
    "transformer": Attention,
    "recurrent": Recurrent,
}
"""Name to a function that returns the network with random weights."""


def deep_residual() -> nn.Module:
    """Six residual blocks, at half of the image's size and at a quarter: 0.3 M parameters."""
    return SmallResNet(stem=32, widths=(32, 64), blocks=3)


def deep_depthwise() -> nn.Module:
    """Seven depthwise blocks, six of them with a skip, at half of the image's size and at a quarter."""
    sizes = (*[(32, 32, 1)] * 3, (32, 64, 2), *[(64, 64, 1)] * 3)
    blocks = [Inverted(inputs, outputs, stride, nn.ReLU6, None) for inputs, outputs, stride in sizes]
    return nn.Sequential(*conv(1, 32, 3, 2), nn.ReLU6(), *blocks, *conv(64, 128, 1), nn.ReLU6(), *head(128))


DEEP: dict[str, Callable[[], nn.Module]] = {"deep_residual": deep_residual, "deep_depthwise": deep_depthwise}
"""Networks with more blocks for their work, of which several can be left out; 40 of them train in minutes."""
TRAINABLE: dict[str, Callable[[], nn.Module]] = FASHION | DEEP

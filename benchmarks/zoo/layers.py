"""Layers shared by several families."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def conv_norm(
    channels: int, out: int, kernel: int, stride: int = 1, *, groups: int = 1, act: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Return a convolution that keeps the size (or divides it by ``stride``), a batch norm, an activation."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out), act()
    )


class SqueezeExcite(nn.Module):
    """A gate for each channel, computed from the means of all channels (Hu et al., 2018)."""

    def __init__(
        self,
        channels: int,
        narrow: int,
        act: Callable[[], nn.Module] = nn.ReLU,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, narrow, 1), act(), nn.Conv2d(narrow, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        y: Tensor = x * self.layers(x)
        return y


class InvertedResidual(nn.Module):
    """Expand, depthwise, optional gate, project; a skip if the shape stays the same."""

    def __init__(
        self,
        channels: int,
        wide: int,
        out: int,
        kernel: int = 3,
        stride: int = 1,
        act: Callable[[], nn.Module] = nn.ReLU6,
        squeeze: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.skip = stride == 1 and channels == out
        expand = [conv_norm(channels, wide, 1, act=act)] if wide != channels else []
        self.layers = nn.Sequential(
            *expand,
            conv_norm(wide, wide, kernel, stride, groups=wide, act=act),
            nn.Identity() if squeeze is None else squeeze,
            conv_norm(wide, out, 1, act=nn.Identity),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or divide it by the stride."""
        y: Tensor = self.layers(x)
        return x + y if self.skip else y


def classifier(channels: int, classes: int) -> nn.Sequential:
    """Return a global mean, dropout and a linear layer, named ``3``."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes))

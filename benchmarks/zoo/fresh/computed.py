"""Networks that compute their weights, compute a part in 16 bits, or write in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built
from benchmarks.zoo.layers import classifier, conv_norm

IMAGE = (2, 3, 32, 32)


class HyperNetwork(nn.Module):
    """A residual network whose convolutions are made from a learned vector each, by the same two linear maps."""

    def __init__(self, width: int, code: int, inner: int, blocks: int) -> None:
        super().__init__()
        self.width, self.inner = width, inner
        self.stem, self.head = conv_norm(3, width, 3, 2), nn.Linear(width, 10)
        self.codes = nn.ParameterList([nn.Parameter(torch.randn(code)) for _ in range(2 * blocks)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(2 * blocks)])
        self.first = nn.Parameter(0.1 * torch.randn(code, width * inner))
        self.second = nn.Parameter(0.1 * torch.randn(inner, width * 9))

    def make_weight(self, code: Tensor) -> Tensor:
        """Map a vector to a kernel of shape (width, width, 3, 3)."""
        parts = torch.matmul(code, self.first).view(self.width, self.inner)
        return torch.matmul(parts, self.second).view(self.width, self.width, 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.stem(images)
        for block in range(0, len(self.codes), 2):
            y = x
            for at in (block, block + 1):
                y = F.relu(self.norms[at](F.conv2d(y, self.make_weight(self.codes[at]), padding=1)))
            x = x + y
        return self.head(x.mean((2, 3)))


def hypernetwork() -> Built:
    """Four convolutions of 32 channels."""
    return HyperNetwork(32, 24, 16, 2), (torch.randn(IMAGE),)


class PartialBlock(nn.Module):
    """A convolution of a quarter of the channels, written back in place; two pointwise layers; a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.part = width // 4
        self.mix = nn.Conv2d(self.part, self.part, 3, padding=1, bias=False)
        self.inner = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        y = x.clone()
        y[:, : self.part] = self.mix(y[:, : self.part])
        return x + self.inner(y)


def fasternet() -> Built:
    """Partial convolutions, as FasterNet runs them in evaluation."""
    layers = [conv_norm(3, 32, 4, 4), PartialBlock(32), PartialBlock(32), conv_norm(32, 64, 3, 2), PartialBlock(64)]
    return nn.Sequential(*layers, classifier(64, 10)), (torch.randn(IMAGE),)


class MixedPrecision(nn.Module):
    """A backbone under autocast, and a head in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv_norm(3, 32, 3, 2), conv_norm(32, 48, 3, 2), conv_norm(48, 64, 3))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.backbone(images)
        return self.head(x.float().mean((2, 3)))


def mixed_precision() -> Built:
    """Three convolutions in bfloat16."""
    return MixedPrecision(), (torch.randn(IMAGE),)


class Sign(torch.autograd.Function):
    """A sign whose gradient passes straight through."""

    @staticmethod
    def forward(_: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """Return -1, 0 or 1."""
        return torch.sign(x)

    @staticmethod
    def backward(_: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        """Pass the gradient."""
        return gradients[0]


class BinaryConv2d(nn.Conv2d):
    """Signs of weights, scaled by their mean magnitude in each output channel, as in XNOR-Net."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True).detach()
        return F.conv2d(x, scale * Sign.apply(self.weight), None, self.stride, self.padding)


def xnor_net() -> Built:
    """Binary weights between a first and a last layer in full precision."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2)]
    for channels, out in ((32, 48), (48, 64)):
        layers += [BinaryConv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, classifier(64, 10)), (torch.randn(IMAGE),)


COMPUTED: dict[str, Architecture] = {
    "hypernetwork": Architecture(hypernetwork, "Ha et al., 2017", ("head",)),
    "fasternet": Architecture(fasternet, "Chen et al., 2023", ("5.3",)),
    "mixed_precision": Architecture(mixed_precision, "Micikevicius et al., 2018", ("head",)),
    "xnor_net": Architecture(xnor_net, "Rastegari et al., 2016", ("7.3",)),
}

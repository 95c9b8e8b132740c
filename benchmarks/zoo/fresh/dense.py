"""Networks for segmentation: real-time branches, high resolution, nested and gated U-shapes, unpooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built
from benchmarks.zoo.layers import conv_norm
from benchmarks.zoo.residual import BasicBlock

IMAGE = (2, 3, 64, 64)


def up(x: Tensor, like: Tensor) -> Tensor:
    """Resize a map to the size of another."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class PagFusion(nn.Module):
    """Detail and context mixed by their similarity at each position."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.x = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.y = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Keep the shape of ``x``."""
        key = up(self.y(y), x)
        similarity = torch.sigmoid(torch.sum(key * self.x(x), dim=1).unsqueeze(1))
        return (1 - similarity) * x + similarity * up(y, x)


class PIDNet(nn.Module):
    """Three branches: detail, context, boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 32, 3, 2), conv_norm(32, 48, 3, 2))
        self.context1, self.context2 = BasicBlock(48, 96, 2), BasicBlock(96, 128, 2)
        self.detail1, self.detail2 = BasicBlock(48, 64, 1), BasicBlock(64, 64, 1)
        self.compress, self.pag = conv_norm(96, 64, 1, act=nn.Identity), PagFusion(64, 32)
        self.edge1, self.edge2 = BasicBlock(48, 32, 1), conv_norm(96, 32, 3)
        self.pool = nn.Sequential(conv_norm(128, 64, 1))
        self.edge_head, self.head = nn.Conv2d(32, 1, 1), nn.Conv2d(64, 5, 1)
        self.fuse = conv_norm(64, 64, 3)
        self.widen = nn.Conv2d(32, 64, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to maps of classes and of boundaries."""
        x = self.stem(images)
        context = self.context1(x)
        detail = self.detail2(self.pag(self.detail1(x), self.compress(context)))
        edge = F.relu(self.edge1(x) + up(self.edge2(context), x))
        context = up(self.pool(self.context2(context)), x)
        gate = torch.sigmoid(self.widen(edge))
        y = self.fuse(gate * detail + (1 - gate) * context)
        return up(self.head(y), images), self.edge_head(edge)


def pidnet() -> Built:
    """A gate between detail and context."""
    return PIDNet(), (torch.randn(IMAGE),)


class DAPPM(nn.Module):
    """Pooled at several sizes, summed step by step, concatenated."""

    def __init__(self, channels: int, width: int, out: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(pool, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, width, 1, bias=False))
            for pool in (nn.Identity(), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(5, 4, 2), nn.AdaptiveAvgPool2d(1))
        )
        self.process = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1, bias=False))
            for _ in range(3)
        )
        self.join, self.skip = nn.Conv2d(4 * width, out, 1, bias=False), nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size."""
        parts = [self.scales[0](x)]
        for scale, process in zip(list(self.scales)[1:], self.process, strict=True):
            parts.append(process(up(scale(x), x) + parts[-1]))
        return self.join(torch.cat(parts, 1)) + self.skip(x)


class DDRNet(nn.Module):
    """Two resolutions that exchange twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 32, 3, 2), conv_norm(32, 32, 3, 2), BasicBlock(32, 64, 2))
        self.low1, self.low2 = BasicBlock(64, 96, 2), BasicBlock(96, 128, 1)
        self.high1, self.high2 = BasicBlock(64, 64, 1), BasicBlock(64, 64, 1)
        self.down, self.compress = conv_norm(64, 96, 3, 2, act=nn.Identity), conv_norm(96, 64, 1, act=nn.Identity)
        self.dappm = DAPPM(128, 32, 64)
        self.head = nn.Sequential(conv_norm(64, 64, 3), nn.Conv2d(64, 5, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images to maps of classes."""
        x = self.stem(images)
        low, high = self.low1(F.relu(x)), self.high1(F.relu(x))
        low, high = low + self.down(F.relu(high)), high + up(self.compress(F.relu(low)), high)
        y = up(self.dappm(self.low2(F.relu(low))), high)
        return up(self.head(y + self.high2(F.relu(high))), images)


def ddrnet() -> Built:
    """Bilateral fusion and pyramid pooling."""
    return DDRNet(), (torch.randn(IMAGE),)


class ShortTerm(nn.Module):
    """Convolutions with halved width at each step, concatenated."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(channels, out // 2, 1)
        self.down = (
            conv_norm(out // 2, out // 2, 3, 2, groups=out // 2, act=nn.Identity) if stride == 2 else nn.Identity()
        )
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        self.second, self.third = conv_norm(out // 2, out // 4, 3), conv_norm(out // 4, out // 8, 3)
        self.fourth = conv_norm(out // 8, out // 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the size, or halve it."""
        one = self.first(x)
        two = self.second(self.down(one))
        three = self.third(two)
        return torch.cat([self.pool(one), two, three, self.fourth(three)], dim=1)


class STDC(nn.Module):
    """Short-term dense concatenation, and a head on two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 32, 3, 2), ShortTerm(32, 64, 2))
        self.deep = nn.Sequential(ShortTerm(64, 128, 2), ShortTerm(128, 128, 1))
        self.reduce, self.fuse, self.head = conv_norm(128, 64, 1), conv_norm(128, 64, 3), nn.Conv2d(64, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to maps of classes."""
        x = self.stem(images)
        y = self.reduce(self.deep(x))
        y = y * torch.sigmoid(F.avg_pool2d(y, y.shape[2:]))
        return up(self.head(self.fuse(torch.cat([x, up(y, x)], 1))), images)


def stdc() -> Built:
    """Dense concatenation."""
    return STDC(), (torch.randn(IMAGE),)


class ENetDown(nn.Module):
    """Pooling that keeps its indices on the skip, padded with zero channels."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.extra = out - channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 2, 2, bias=False), nn.BatchNorm2d(channels), nn.PReLU(),
            conv_norm(channels, channels, 3, act=nn.PReLU), conv_norm(channels, out, 1, act=nn.Identity),
        )  # fmt: skip
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the size; also return the indices."""
        skip, indices = F.max_pool2d(x, 2, return_indices=True)
        n, _, h, w = skip.shape
        zeros = torch.zeros(n, self.extra, h, w, dtype=x.dtype, device=x.device)
        return self.act(self.body(x) + torch.cat((skip, zeros), 1)), indices


class ENet(nn.Module):
    """Bottlenecks with dilated and asymmetric convolutions; unpooling on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 13, 3, 2, 1), nn.MaxPool2d(2)
        self.norm = nn.Sequential(nn.BatchNorm2d(16), nn.PReLU())
        self.down = ENetDown(16, 64)
        self.middle = nn.Sequential(
            nn.Conv2d(64, 32, 1, bias=False), nn.BatchNorm2d(32), nn.PReLU(), nn.Conv2d(32, 32, (5, 1), padding=(2, 0)),
            nn.Conv2d(32, 32, (1, 5), padding=(0, 2)), nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(),
        )  # fmt: skip
        self.dilated = nn.Sequential(nn.Conv2d(64, 64, 3, padding=4, dilation=4), nn.PReLU())
        self.skip, self.widen = nn.Conv2d(64, 16, 1), nn.ConvTranspose2d(64, 16, 2, 2)
        self.out = nn.ConvTranspose2d(16, 5, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to maps of classes."""
        x = self.norm(torch.cat([self.first(images), self.pool(images)], 1))
        y, indices = self.down(x)
        y = self.dilated(y + self.middle(y))
        unpooled = F.max_unpool2d(self.skip(y), indices, [2, 2], output_size=x.shape[-2:])
        return self.out(F.relu(unpooled + self.widen(y)))


def enet() -> Built:
    """Max-pooling with indices, zero channels, asymmetric kernels."""
    return ENet(), (torch.randn(IMAGE),)


class SegNet(nn.Module):
    """An encoder whose pooling indices the decoder reuses."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_norm(3, 32, 3), conv_norm(32, 64, 3)
        self.up2, self.up1 = conv_norm(64, 32, 3), conv_norm(32, 32, 3)
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)
        self.out = nn.Conv2d(32, 5, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to maps of classes."""
        x, first = self.pool(self.down1(images))
        x, second = self.pool(self.down2(x))
        x = self.up2(self.unpool(x, second))
        return self.out(self.up1(self.unpool(x, first)))


def segnet() -> Built:
    """Unpooling."""
    return SegNet(), (torch.randn(2, 3, 32, 32),)


class HRNet(nn.Module):
    """Two resolutions in parallel, each the sum of both, concatenated at the end."""

    def __init__(self, outputs: int = 17) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 32, 3, 2), conv_norm(32, 32, 3, 2))
        self.to_high, self.to_low = conv_norm(32, 32, 3), conv_norm(32, 64, 3, 2)
        self.high = nn.ModuleList(BasicBlock(32, 32, 1) for _ in range(2))
        self.low = nn.ModuleList(BasicBlock(64, 64, 1) for _ in range(2))
        self.down = nn.ModuleList(conv_norm(32, 64, 3, 2, act=nn.Identity) for _ in range(2))
        self.lift = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(64, 32, 1, bias=False), nn.BatchNorm2d(32), nn.Upsample(scale_factor=2, mode="nearest")
            )
            for _ in range(2)
        )
        self.head = nn.Sequential(conv_norm(96, 96, 1), nn.Conv2d(96, outputs, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images to heat maps at a quarter of the size."""
        x = self.stem(images)
        high, low = self.to_high(x), self.to_low(x)
        for one, other, down, lift in zip(self.high, self.low, self.down, self.lift, strict=True):
            high, low = one(high), other(low)
            high, low = F.relu(high + lift(low)), F.relu(low + down(high))
        return self.head(torch.cat([high, up(low, high)], 1))


def hrnet() -> Built:
    """High resolution throughout."""
    return HRNet(), (torch.randn(IMAGE),)


class UNetPlusPlus(nn.Module):
    """Skip connections through nested columns; three outputs."""

    def __init__(self) -> None:
        super().__init__()
        w = (24, 48, 96)
        self.pool = nn.MaxPool2d(2, 2)
        self.x00, self.x10, self.x20 = conv_norm(3, w[0], 3), conv_norm(w[0], w[1], 3), conv_norm(w[1], w[2], 3)
        self.x01, self.x11 = conv_norm(w[0] + w[1], w[0], 3), conv_norm(w[1] + w[2], w[1], 3)
        self.x02 = conv_norm(2 * w[0] + w[1], w[0], 3)
        self.final1, self.final2 = nn.Conv2d(w[0], 5, 1), nn.Conv2d(w[0], 5, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images to one map for each depth."""
        x00 = self.x00(images)
        x10 = self.x10(self.pool(x00))
        x01 = self.x01(torch.cat([x00, up(x10, x00)], 1))
        x20 = self.x20(self.pool(x10))
        x11 = self.x11(torch.cat([x10, up(x20, x10)], 1))
        x02 = self.x02(torch.cat([x00, x01, up(x11, x00)], 1))
        return [self.final1(x01), self.final2(x02)]


def unet_plus_plus() -> Built:
    """Nested skips."""
    return UNetPlusPlus(), (torch.randn(2, 3, 32, 32),)


class AttentionGate(nn.Module):
    """A skip gated at each position by the deeper map."""

    def __init__(self, deep: int, skip: int, width: int) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.Conv2d(deep, width, 1), nn.BatchNorm2d(width))
        self.x = nn.Sequential(nn.Conv2d(skip, width, 1), nn.BatchNorm2d(width))
        self.psi = nn.Sequential(nn.Conv2d(width, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Keep the shape of the skip."""
        return skip * self.psi(F.relu(self.g(deep) + self.x(skip)))


class AttentionUNet(nn.Module):
    """A U-Net with gated skips and pyramid pooling at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = conv_norm(3, 32, 3), conv_norm(32, 64, 3), conv_norm(64, 96, 3)
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(s), conv_norm(96, 24, 1)) for s in (1, 2, 4))
        self.up2, self.up1 = nn.ConvTranspose2d(168, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)
        self.gate2, self.gate1 = AttentionGate(64, 64, 32), AttentionGate(32, 32, 16)
        self.join2, self.join1, self.out = conv_norm(128, 64, 3), conv_norm(64, 32, 3), nn.Conv2d(32, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to maps of classes."""
        one = self.down1(images)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.down3(F.max_pool2d(two, 2))
        x = torch.cat([x, *(up(pool(x), x) for pool in self.pools)], 1)
        x = self.up2(x)
        x = self.join2(torch.cat((self.gate2(x, two), x), dim=1))
        x = self.up1(x)
        return self.out(self.join1(torch.cat((self.gate1(x, one), x), dim=1)))


def attention_unet() -> Built:
    """Attention gates and pyramid pooling."""
    return AttentionUNet(), (torch.randn(2, 3, 32, 32),)


DENSE: dict[str, Architecture] = {
    "pidnet": Architecture(pidnet, "Xu et al., 2023", ("head", "edge_head")),
    "ddrnet": Architecture(ddrnet, "Hong et al., 2021", ("head.1",)),
    "stdc": Architecture(stdc, "Fan et al., 2021", ("head",)),
    "enet": Architecture(enet, "Paszke et al., 2016", ("out",)),
    "segnet": Architecture(segnet, "Badrinarayanan et al., 2017", ("out",)),
    "hrnet": Architecture(hrnet, "Sun et al., 2019", ("head.1",)),
    "unet_plus_plus": Architecture(unet_plus_plus, "Zhou et al., 2018", ("final1", "final2")),
    "attention_unet": Architecture(attention_unet, "Oktay et al., 2018; Zhao et al., 2017", ("out",)),
}

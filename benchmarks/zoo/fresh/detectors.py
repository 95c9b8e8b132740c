"""Detectors and trackers: weighted pyramids, key points, set prediction, deformable attention, siamese correlation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built
from benchmarks.zoo.layers import conv_norm
from benchmarks.zoo.residual import BasicBlock

IMAGE = (2, 3, 64, 64)
CLASSES = 5


def backbone() -> nn.ModuleList:
    """Return three stages with 48, 64 and 96 channels at 1/4, 1/8 and 1/16 of the size."""
    stem = nn.Sequential(conv_norm(3, 32, 3, 2), BasicBlock(32, 48, 2))
    return nn.ModuleList([stem, BasicBlock(48, 64, 2), BasicBlock(64, 96, 2)])


def levels_of(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Return the map after each stage."""
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return maps


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution with a batch norm."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False), nn.Conv2d(channels, out, 1),
            nn.BatchNorm2d(out),
        )  # fmt: skip


class BiFPN(nn.Module):
    """A pyramid down and up again, with positive weights for each sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for _ in range(2):
            self.down.append(nn.Parameter(torch.rand(2)))
            self.up.append(nn.Parameter(torch.rand(3)))
        self.convs = nn.ModuleList(Separable(width, width) for _ in range(4))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Keep the shapes of three levels."""
        p3, p4, p5 = maps
        weights = F.relu(self.down[0])
        weights = weights / (weights.sum() + 1e-4)
        t4 = self.convs[0](F.silu(weights[0] * p4 + weights[1] * F.interpolate(p5, scale_factor=2.0)))
        weights = F.relu(self.down[1])
        weights = weights / (weights.sum() + 1e-4)
        o3 = self.convs[1](F.silu(weights[0] * p3 + weights[1] * F.interpolate(t4, scale_factor=2.0)))
        weights = F.relu(self.up[0])
        weights = weights / (weights.sum() + 1e-4)
        o4 = self.convs[2](F.silu(weights[0] * p4 + weights[1] * t4 + weights[2] * F.max_pool2d(o3, 3, 2, 1)))
        weights = F.relu(self.up[1])
        weights = weights / (weights.sum() + 1e-4)
        o5 = self.convs[3](F.silu(weights[0] * p5 + weights[1] * p5 + weights[2] * F.max_pool2d(o4, 3, 2, 1)))
        return [o3, o4, o5]


class EfficientDet(nn.Module):
    """Two weighted pyramids; heads that all levels share, with a batch norm for each level."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stages = backbone()
        self.lateral = nn.ModuleList(conv_norm(c, width, 1, act=nn.Identity) for c in (48, 64, 96))
        self.pyramid = nn.ModuleList(BiFPN(width) for _ in range(2))
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.classes, self.boxes = nn.Conv2d(width, 9 * CLASSES, 3, padding=1), nn.Conv2d(width, 36, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to (batch, anchors, classes) and (batch, anchors, 4)."""
        maps = [layer(x) for layer, x in zip(self.lateral, levels_of(self.stages, images), strict=True)]
        for pyramid in self.pyramid:
            maps = pyramid(maps)
        classes, boxes = [], []
        for x, norm in zip(maps, self.norms, strict=True):
            y = F.silu(norm(self.conv(x)))
            classes.append(self.classes(y).permute(0, 2, 3, 1).contiguous().view(y.shape[0], -1, CLASSES))
            boxes.append(self.boxes(y).permute(0, 2, 3, 1).contiguous().view(y.shape[0], -1, 4))
        return torch.cat(classes, 1).sigmoid(), torch.cat(boxes, 1)


def efficientdet() -> Built:
    """Weighted bidirectional pyramid."""
    return EfficientDet(), (torch.randn(IMAGE),)


class CenterNet(nn.Module):
    """Transposed convolutions up to heat maps; peaks by max-pooling, as the published decoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(3, 32, 3, 2), BasicBlock(32, 64, 2), BasicBlock(64, 96, 2))
        self.up = nn.Sequential(nn.ConvTranspose2d(96, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.heat, self.size, self.offset = (
            nn.Sequential(nn.Conv2d(64, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, out, 1)) for out in (CLASSES, 2, 2)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images to peaks, sizes and offsets."""
        x = self.up(self.body(images))
        heat = self.heat(x).sigmoid()
        peaks = (F.max_pool2d(heat, 3, 1, 1) == heat).float()
        return {"heat": heat * peaks, "size": self.size(x), "offset": self.offset(x)}


def centernet() -> Built:
    """Objects as points."""
    return CenterNet(), (torch.randn(IMAGE),)


class FCOS(nn.Module):
    """A pyramid, towers with group norm, a learned scale for each level."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stages = backbone()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in (48, 64, 96))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        tower: list[nn.Module] = []
        for _ in range(2):
            tower += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
        self.tower = nn.Sequential(*tower)
        self.classes, self.boxes = nn.Conv2d(width, CLASSES, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.center, self.scales = nn.Conv2d(width, 1, 3, padding=1), nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Map images to classes, distances and centerness of each level."""
        maps = [layer(x) for layer, x in zip(self.lateral, levels_of(self.stages, images), strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        rows = []
        for i, (layer, x) in enumerate(zip(self.smooth, maps, strict=True)):
            y = self.tower(layer(x))
            rows.append((self.classes(y), torch.exp(self.boxes(y) * self.scales[i]), self.center(y)))
        return rows


def fcos() -> Built:
    """Shared towers with group norm."""
    return FCOS(), (torch.randn(IMAGE),)


class DETR(nn.Module):
    """torch's own transformer over a map, and learned queries."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stages = backbone()
        self.project = nn.Conv2d(96, width, 1)
        self.transformer = nn.Transformer(width, 4, 1, 2, 128, batch_first=True)
        self.queries = nn.Parameter(torch.rand(20, width))
        self.rows, self.columns = nn.Parameter(torch.rand(16, width // 2)), nn.Parameter(torch.rand(16, width // 2))
        self.classes, self.boxes = nn.Linear(width, CLASSES + 1), nn.Linear(width, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to the class and the box of each query."""
        h = self.project(levels_of(self.stages, images)[-1])
        height, width = h.shape[-2:]
        place = torch.cat(
            [
                self.columns[:width].unsqueeze(0).repeat(height, 1, 1),
                self.rows[:height].unsqueeze(1).repeat(1, width, 1),
            ],
            -1,
        )
        tokens = place.flatten(0, 1).unsqueeze(0) + 0.1 * h.flatten(2).permute(0, 2, 1)
        out = self.transformer(tokens, self.queries.unsqueeze(0).repeat(h.shape[0], 1, 1))
        return self.classes(out), self.boxes(out).sigmoid()


def detr() -> Built:
    """Set prediction."""
    return DETR(), (torch.randn(IMAGE),)


class DeformableAttention(nn.Module):
    """Each query samples a few points of each level, at learned offsets, bilinearly."""

    def __init__(self, width: int, heads: int = 4, levels: int = 2, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query: Tensor, reference: Tensor, maps: list[Tensor]) -> Tensor:
        """Map (batch, queries, width) and (batch, queries, 2) to (batch, queries, width)."""
        b, n, width = query.shape
        heads, levels, points = self.heads, self.levels, self.points
        offsets = self.offsets(query).view(b, n, heads, levels, points, 2)
        weights = self.weights(query).view(b, n, heads, levels * points).softmax(-1)
        sampled = []
        for level, x in enumerate(maps):
            _, _, h, w = x.shape
            value = self.value(x.flatten(2).transpose(1, 2)).view(b, h * w, heads, width // heads)
            value = value.flatten(2).transpose(1, 2).reshape(b * heads, width // heads, h, w)
            scale = torch.tensor([w, h], dtype=query.dtype)
            grid = 2 * (reference[:, :, None, None] + offsets[:, :, :, level] / scale) - 1
            grid = grid.transpose(1, 2).flatten(0, 1)
            sampled.append(F.grid_sample(value, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
        weights = weights.transpose(1, 2).reshape(b * heads, 1, n, levels * points)
        y = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1).view(b, width, n)
        return self.out(y.transpose(1, 2).contiguous())


class DeformableDETR(nn.Module):
    """Queries with reference points, one decoder layer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stages = backbone()
        self.project = nn.ModuleList(nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(8, width)) for c in (64, 96))
        self.queries, self.reference = nn.Embedding(20, width), nn.Linear(width, 2)
        self.self_attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.attention, self.norms = DeformableAttention(width), nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.classes, self.boxes = nn.Linear(width, CLASSES), nn.Linear(width, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to the class and the box of each query."""
        maps = [layer(x) for layer, x in zip(self.project, levels_of(self.stages, images)[1:], strict=True)]
        query = self.queries.weight.unsqueeze(0).expand(images.shape[0], -1, -1)
        reference = self.reference(query).sigmoid()
        x = self.norms[0](query + self.self_attention(query, query, query)[0])
        x = self.norms[1](x + self.attention(x, reference, maps))
        return self.classes(x), self.boxes(x).sigmoid()


def deformable_detr() -> Built:
    """Multi-scale deformable attention."""
    return DeformableDETR(), (torch.randn(IMAGE),)


class PartialAttention(nn.Module):
    """Half of the channels pass through attention over the map, with depthwise positions on the values."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.part, self.heads, self.depth = width // 2, heads, width // 2 // heads
        self.key = self.depth // 2
        self.first, self.last = conv_norm(width, width, 1, act=nn.SiLU), conv_norm(width, width, 1, act=nn.SiLU)
        self.qkv = conv_norm(self.part, self.part + 2 * self.key * heads, 1, act=nn.Identity)
        self.place = conv_norm(self.part, self.part, 3, groups=self.part, act=nn.Identity)
        self.proj = conv_norm(self.part, self.part, 1, act=nn.Identity)
        self.ffn = nn.Sequential(
            conv_norm(self.part, 2 * self.part, 1, act=nn.SiLU), conv_norm(2 * self.part, self.part, 1, act=nn.Identity)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        a, b = self.first(x).split((self.part, self.part), dim=1)
        batch, c, h, w = b.shape
        q, k, v = (
            self.qkv(b)
            .view(batch, self.heads, self.key * 2 + self.depth, h * w)
            .split([self.key, self.key, self.depth], dim=2)
        )
        attention = ((q.transpose(-2, -1) @ k) * self.key**-0.5).softmax(dim=-1)
        y = (v @ attention.transpose(-2, -1)).view(batch, c, h, w) + self.place(v.reshape(batch, c, h, w))
        b = b + self.proj(y)
        b = b + self.ffn(b)
        return self.last(torch.cat((a, b), 1))


class YOLO11(nn.Module):
    """Split blocks, pyramid pooling, partial attention, a box head of distributions."""

    def __init__(self, bins: int = 16) -> None:
        super().__init__()
        self.bins = bins
        self.stages = backbone()
        self.pool, self.join = nn.MaxPool2d(5, 1, 2), conv_norm(4 * 48, 96, 1, act=nn.SiLU)
        self.narrow, self.attention = conv_norm(96, 48, 1, act=nn.SiLU), PartialAttention(96)
        self.fuse = conv_norm(160, 64, 3, act=nn.SiLU)
        self.boxes = nn.ModuleList(nn.Sequential(conv_norm(c, 64, 3), nn.Conv2d(64, 4 * bins, 1)) for c in (64, 96))
        self.classes = nn.ModuleList(
            nn.Sequential(conv_norm(c, c, 3, groups=c), conv_norm(c, 64, 1), nn.Conv2d(64, CLASSES, 1))
            for c in (64, 96)
        )
        self.integral = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.integral.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to (batch, 4, cells) and (batch, classes, cells)."""
        _, high, low = levels_of(self.stages, images)
        parts = [self.narrow(low)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        low = self.attention(self.join(torch.cat(parts, 1)))
        high = self.fuse(torch.cat([F.interpolate(low, scale_factor=2.0, mode="nearest"), high], 1))
        rows = [
            torch.cat((box(x), cls(x)), 1).view(x.shape[0], 4 * self.bins + CLASSES, -1)
            for box, cls, x in zip(self.boxes, self.classes, (high, low), strict=True)
        ]
        boxes, classes = torch.cat(rows, 2).split((4 * self.bins, CLASSES), 1)
        b, _, cells = boxes.shape
        boxes = self.integral(boxes.view(b, 4, self.bins, cells).transpose(2, 1).softmax(1)).view(b, 4, cells)
        return boxes, classes.sigmoid()


def yolo11() -> Built:
    """Partial self-attention and distribution focal boxes."""
    return YOLO11(), (torch.randn(IMAGE),)


class SiamRPN(nn.Module):
    """A template's features are the kernel of a depthwise correlation over the search image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(3, 32, 3, 2), BasicBlock(32, 48, 2), conv_norm(48, 64, 3))
        self.kernel, self.search = conv_norm(64, width, 3), conv_norm(64, width, 3)
        self.classes = nn.Sequential(conv_norm(width, width, 1), nn.Conv2d(width, 10, 1))
        self.boxes = nn.Sequential(conv_norm(width, width, 1), nn.Conv2d(width, 20, 1))

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, Tensor]:
        """Map both images to classes and boxes at each position."""
        z, x = self.kernel(self.body(template))[:, :, 1:-1, 1:-1], self.search(self.body(search))
        batch, channels = z.size(0), z.size(1)
        y = F.conv2d(
            x.view(1, batch * channels, x.size(2), x.size(3)), z.reshape(batch * channels, 1, z.size(2), z.size(3)),
            groups=batch * channels,
        )  # fmt: skip
        y = y.view(batch, channels, y.size(2), y.size(3))
        return self.classes(y), self.boxes(y)


def siamrpn() -> Built:
    """Depthwise cross-correlation."""
    return SiamRPN(), (torch.randn(2, 3, 32, 32), torch.randn(2, 3, 64, 64))


DETECTORS: dict[str, Architecture] = {
    "efficientdet": Architecture(efficientdet, "Tan et al., 2020", ("classes", "boxes")),
    "centernet": Architecture(centernet, "Zhou et al., 2019", ("heat.2", "size.2", "offset.2")),
    "fcos": Architecture(fcos, "Tian et al., 2019", ("classes", "boxes", "center")),
    "detr": Architecture(detr, "Carion et al., 2020", ("classes", "boxes")),
    "deformable_detr": Architecture(
        deformable_detr, "Zhu et al., 2021", ("classes", "boxes", "reference", "attention.offsets", "attention.weights")
    ),
    "yolo11": Architecture(
        yolo11,
        "Wang et al., 2024; Jocher and Qiu, 2024",
        ("boxes.0.1", "boxes.1.1", "classes.0.2", "classes.1.2", "integral"),
    ),
    "siamrpn": Architecture(siamrpn, "Li et al., 2019", ("classes.1", "boxes.1")),
}

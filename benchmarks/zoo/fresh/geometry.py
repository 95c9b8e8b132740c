"""Graphs, points, fields and other structures: adjacency, neighbours, capsules, equations, pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built
from benchmarks.zoo.layers import conv_norm

NODES, POINTS = 12, 64


def graphs() -> tuple[Tensor, Tensor]:
    """Return features of nodes, and adjacencies."""
    return torch.randn(2, NODES, 16), torch.rand(2, NODES, NODES)


class GCN(nn.Module):
    """Symmetrically normalized adjacency times features, twice; the mean over nodes."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Map (batch, nodes, 16) and (batch, nodes, nodes) to logits."""
        a = (adjacency + adjacency.transpose(1, 2)).abs() / 2 + torch.eye(x.size(1))
        d = a.sum(-1).pow(-0.5)
        a = d.unsqueeze(-1) * a * d.unsqueeze(-2)
        x = F.relu(torch.bmm(a, self.first(x)))
        x = F.relu(torch.bmm(a, self.second(x)))
        return self.head(x.mean(1))


def gcn() -> Built:
    """Graph convolution."""
    return GCN(), graphs()


class GAT(nn.Module):
    """Scores of pairs from two vectors for each head, masked by the adjacency."""

    def __init__(self, heads: int = 4, depth: int = 16) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        self.w, self.out = nn.Linear(16, heads * depth, bias=False), nn.Linear(heads * depth, 32)
        self.left, self.right = (nn.Parameter(torch.randn(1, 1, heads, depth)) for _ in range(2))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Map (batch, nodes, 16) and (batch, nodes, nodes) to logits of nodes."""
        b, n, _ = x.shape
        h = self.w(x).view(b, n, self.heads, self.depth)
        scores = (h * self.left).sum(-1).unsqueeze(2) + (h * self.right).sum(-1).unsqueeze(1)
        scores = F.leaky_relu(scores, 0.2).masked_fill((adjacency < 0.3).unsqueeze(-1), -1e9)
        y = torch.einsum("bijh,bjhd->bihd", torch.softmax(scores, dim=2), h)
        return self.head(F.elu(self.out(y.reshape(b, n, -1))))


def gat() -> Built:
    """Graph attention."""
    return GAT(), graphs()


class MessagePassing(nn.Module):
    """Messages along a fixed list of edges, summed at their ends by an index, a recurrent update."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        ends = torch.randint(NODES, (2, 30))
        self.register_buffer("source", ends[0])
        self.register_buffer("target", ends[1])
        self.source: Tensor
        self.target: Tensor
        self.embed, self.message = nn.Linear(16, width), nn.Sequential(nn.Linear(2 * width, width), nn.ReLU())
        self.update, self.head = nn.GRUCell(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, nodes, 16) to logits."""
        h = torch.tanh(self.embed(x))
        b, n, width = h.shape
        for _ in range(2):
            m = self.message(torch.cat([h[:, self.source], h[:, self.target]], dim=-1))
            total = torch.zeros_like(h).index_add(1, self.target, m)
            h = self.update(total.reshape(b * n, width), h.reshape(b * n, width)).view(b, n, width)
        return self.head(h.sum(1))


def message_passing() -> Built:
    """Neural message passing."""
    return MessagePassing(), (torch.randn(2, NODES, 16),)


class DGCNN(nn.Module):
    """Edge convolutions over the nearest neighbours in feature space."""

    def __init__(self, k: int = 6) -> None:
        super().__init__()
        self.k = k
        self.conv1 = nn.Sequential(nn.Conv2d(6, 32, 1, bias=False), nn.BatchNorm2d(32), nn.LeakyReLU(0.2))
        self.conv2 = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2))
        self.join, self.head = nn.Sequential(nn.Conv1d(96, 128, 1), nn.BatchNorm1d(128)), nn.Linear(256, 10)

    def edges(self, x: Tensor) -> Tensor:
        """Map (batch, c, points) to (batch, 2c, points, k)."""
        b, c, n = x.shape
        inner = -2 * torch.matmul(x.transpose(2, 1), x)
        xx = torch.sum(x**2, dim=1, keepdim=True)
        index = (-xx - inner - xx.transpose(2, 1)).topk(k=self.k, dim=-1)[1]
        index = (index + torch.arange(0, b).view(-1, 1, 1) * n).view(-1)
        rows = x.transpose(2, 1).contiguous()
        feature = rows.view(b * n, -1)[index, :].view(b, n, self.k, c)
        center = rows.view(b, n, 1, c).repeat(1, 1, self.k, 1)
        return torch.cat((feature - center, center), dim=3).permute(0, 3, 1, 2).contiguous()

    def forward(self, points: Tensor) -> Tensor:
        """Map (batch, 3, points) to logits."""
        one = self.conv1(self.edges(points)).max(dim=-1, keepdim=False)[0]
        two = self.conv2(self.edges(one)).max(dim=-1, keepdim=False)[0]
        x = F.leaky_relu(self.join(torch.cat((one, two), dim=1)), 0.2)
        return self.head(
            torch.cat((F.adaptive_max_pool1d(x, 1).squeeze(-1), F.adaptive_avg_pool1d(x, 1).squeeze(-1)), 1)
        )


def dgcnn() -> Built:
    """Dynamic graph of points."""
    return DGCNN(), (torch.randn(2, 3, POINTS),)


class PointNetPlusPlus(nn.Module):
    """Centers, their nearest points by distance, shared layers, maxima; twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 1), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(51, 64, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 96, 1), nn.ReLU()
        )
        self.head = nn.Linear(96, 10)

    @staticmethod
    def group(xyz: Tensor, centers: Tensor, values: Tensor | None, k: int) -> Tensor:
        """Return (batch, 3 + c, k, centers): relative positions and values of neighbours."""
        index = torch.cdist(centers, xyz).topk(k, dim=-1, largest=False)[1]
        batch = torch.arange(xyz.shape[0]).view(-1, 1, 1)
        grouped = xyz[batch, index] - centers.unsqueeze(2)
        if values is not None:
            grouped = torch.cat([grouped, values[batch, index]], dim=-1)
        return grouped.permute(0, 3, 2, 1)

    def forward(self, points: Tensor) -> Tensor:
        """Map (batch, points, 3) to logits."""
        one = points[:, ::4]
        x = torch.max(self.first(self.group(points, one, None, 8)), 2)[0].transpose(1, 2)
        two = one[:, ::4]
        x = torch.max(self.second(self.group(one, two, x, 4)), 2)[0]
        return self.head(x.amax(-1))


def pointnet_plus_plus() -> Built:
    """Hierarchical point sets."""
    return PointNetPlusPlus(), (torch.randn(2, POINTS, 3),)


class CapsNet(nn.Module):
    """Primary capsules, and routing by agreement to digit capsules."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        self.conv, self.primary = nn.Conv2d(1, 48, 9), nn.Conv2d(48, 64, 9, 2)
        self.weight = nn.Parameter(0.1 * torch.randn(1, 8 * 36, classes, 16, 8))
        self.decoder = nn.Sequential(nn.Linear(16 * classes, 96), nn.ReLU(), nn.Linear(96, 784), nn.Sigmoid())

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        """Shorten vectors to at most 1."""
        norm = (x**2).sum(-1, keepdim=True)
        return norm * x / ((1.0 + norm) * torch.sqrt(norm + 1e-9))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to the lengths of capsules and a reconstruction."""
        x = self.primary(F.relu(self.conv(images)))
        u = self.squash(x.view(x.size(0), 8, 8, -1).permute(0, 1, 3, 2).reshape(x.size(0), -1, 8))
        u_hat = torch.matmul(self.weight, u[:, :, None, :, None]).squeeze(-1)
        b = torch.zeros(x.size(0), u.size(1), self.classes, 1)
        for _ in range(2):
            c = F.softmax(b, dim=2)
            v = self.squash((c * u_hat).sum(dim=1))
            b = b + (u_hat * v.unsqueeze(1)).sum(-1, keepdim=True)
        return (v**2).sum(-1) ** 0.5, self.decoder(v.view(v.size(0), -1))


def capsnet() -> Built:
    """Dynamic routing."""
    return CapsNet(), (torch.randn(2, 1, 28, 28),)


class ODEBlock(nn.Module):
    """Four steps of Runge-Kutta through one function of time and state."""

    def __init__(self, width: int, steps: int = 4) -> None:
        super().__init__()
        self.steps = steps
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width + 1, width, 3, 1, 1), nn.Conv2d(width + 1, width, 3, 1, 1)

    def slope(self, t: float, x: Tensor) -> Tensor:
        """Return the derivative."""
        time = torch.ones_like(x[:, :1]) * t
        y = self.conv1(torch.cat([time, F.relu(self.norm1(x))], 1))
        return self.conv2(torch.cat([time, F.relu(self.norm2(y))], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        h = 1.0 / self.steps
        for i in range(self.steps):
            k1 = self.slope(i * h, x)
            k2 = self.slope((i + 0.5) * h, x + 0.5 * h * k1)
            x = x + h * k2
        return x


def neural_ode() -> Built:
    """A network as a differential equation."""
    body = [nn.Conv2d(1, 48, 3, 2), nn.GroupNorm(8, 48), nn.ReLU(), nn.Conv2d(48, 48, 4, 2, 1), ODEBlock(48)]
    tail = [nn.GroupNorm(8, 48), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)]
    return nn.Sequential(*body, *tail), (torch.randn(2, 1, 28, 28),)


class Siamese(nn.Module):
    """One body for both images, the distance of their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(1, 32, 3, 2), conv_norm(32, 64, 3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.embed, self.head = nn.Linear(256, 48), nn.Linear(48, 1)

    def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        """Map two images to the probability that they match, and their distance."""
        a, b = self.embed(self.body(one)), self.embed(self.body(two))
        return torch.sigmoid(self.head(torch.abs(a - b))), F.pairwise_distance(a, b)


def siamese() -> Built:
    """Pairs."""
    return Siamese(), (torch.randn(2, 1, 28, 28), torch.randn(2, 1, 28, 28))


class NeRF(nn.Module):
    """Encoded positions through layers with a skip, density, and colour from the direction."""

    def __init__(self, width: int = 64, bands: int = 4) -> None:
        super().__init__()
        self.bands, size = bands, 3 + 6 * bands
        self.first = nn.ModuleList([nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width + size, width)])
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.view, self.rgb = nn.Linear(width + size, 32), nn.Linear(32, 3)

    def encode(self, x: Tensor) -> Tensor:
        """Append sines and cosines of growing frequency."""
        parts = [x]
        for i in range(self.bands):
            parts += [torch.sin(x * 2**i), torch.cos(x * 2**i)]
        return torch.cat(parts, -1)

    def forward(self, rays: Tensor) -> Tensor:
        """Map (batch, 6) to colour and density."""
        place, direction = (self.encode(part) for part in torch.split(rays, [3, 3], dim=-1))
        h = place
        for i, layer in enumerate(self.first):
            h = F.relu(layer(torch.cat([place, h], -1) if i == 2 else h))
        view = F.relu(self.view(torch.cat([self.feature(h), direction], -1)))
        return torch.cat([torch.sigmoid(self.rgb(view)), F.relu(self.density(h))], -1)


def nerf() -> Built:
    """A radiance field."""
    return NeRF(), (torch.randn(8, 6),)


class SetAttention(nn.Module):
    """Induced points attend to a set, the set attends to them; pooled by a learned seed."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.induced, self.seed = nn.Parameter(torch.randn(1, 8, width)), nn.Parameter(torch.randn(1, 1, width))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(3))
        self.feeds, self.head = nn.ModuleList(nn.Linear(width, width) for _ in range(3)), nn.Linear(width, 10)

    def attend(self, i: int, query: Tensor, keys: Tensor) -> Tensor:
        """Attention and a layer, each with a skip."""
        h = query + self.attentions[i](query, keys, keys, need_weights=False)[0]
        return h + F.relu(self.feeds[i](h))

    def forward(self, points: Tensor) -> Tensor:
        """Map (batch, points, 3) to logits."""
        x = self.embed(points)
        h = self.attend(0, self.induced.repeat(x.size(0), 1, 1), x)
        x = self.attend(1, x, h)
        return self.head(self.attend(2, self.seed.expand(x.size(0), -1, -1), x).squeeze(1))


def set_transformer() -> Built:
    """Sets."""
    return SetAttention(), (torch.randn(2, 20, 3),)


class SpatialTransformer(nn.Module):
    """A network predicts how to warp its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Conv2d(1, 24, 7, 2), nn.ReLU(), nn.Conv2d(24, 32, 5, 2), nn.ReLU(), nn.Flatten())
        warp = nn.Linear(32, 6)
        warp.bias.data.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
        self.theta = nn.Sequential(nn.Linear(32 * 16, 32), nn.ReLU(), warp)
        self.body = nn.Sequential(conv_norm(1, 32, 3, 2), conv_norm(32, 64, 3, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to log probabilities."""
        theta = self.theta(self.locate(images)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.size()), align_corners=False)
        x = F.grid_sample(images, grid, align_corners=False)
        return F.log_softmax(self.head(self.body(x).mean((2, 3))), dim=1)


def spatial_transformer() -> Built:
    """Affine grids."""
    return SpatialTransformer(), (torch.randn(2, 1, 28, 28),)


class SIREN(nn.Module):
    """Sines as activations."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers = [nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, width)]
        self.layers = nn.ModuleList(layers)
        for i, layer in enumerate(layers):
            bound = 1 / 2 if i == 0 else math.sqrt(6 / width) / 30
            nn.init.uniform_(layer.weight, -bound, bound)
        self.head = nn.Linear(width, 3)

    def forward(self, places: Tensor) -> Tensor:
        """Map (batch, 2) to colours."""
        for layer in self.layers:
            places = torch.sin(30 * layer(places))
        return self.head(places)


def siren() -> Built:
    """An implicit image."""
    return SIREN(), (torch.randn(8, 2),)


GEOMETRY: dict[str, Architecture] = {
    "gcn": Architecture(gcn, "Kipf and Welling, 2017", ("head",)),
    "gat": Architecture(gat, "Velickovic et al., 2018", ("head",)),
    "message_passing": Architecture(message_passing, "Gilmer et al., 2017", ("head",)),
    "dgcnn": Architecture(dgcnn, "Wang et al., 2019", ("head",)),
    "pointnet_plus_plus": Architecture(pointnet_plus_plus, "Qi et al., 2017", ("head",)),
    "capsnet": Architecture(capsnet, "Sabour et al., 2017", ("decoder.2",)),
    "neural_ode": Architecture(neural_ode, "Chen et al., 2018", ("9",)),
    "siamese": Architecture(siamese, "Koch et al., 2015", ("head",)),
    "nerf": Architecture(nerf, "Mildenhall et al., 2020", ("density", "rgb")),
    "set_transformer": Architecture(set_transformer, "Lee et al., 2019", ("head",)),
    "spatial_transformer": Architecture(spatial_transformer, "Jaderberg et al., 2015", ("head", "theta.2")),
    "siren": Architecture(siren, "Sitzmann et al., 2020", ("head",)),
}

"""Recommendation and tables: sparse and dense features, their products, experts for tasks, histories."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Architecture, Built

FIELDS, VALUES, DENSE = 6, 50, 8


def features() -> Tensor:
    """Return the values of the sparse fields."""
    return torch.randint(VALUES, (2, FIELDS))


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DLRM(nn.Module):
    """Dense features through layers, dot products of all pairs, layers on top."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(VALUES, width, mode="sum") for _ in range(FIELDS))
        self.bottom, self.top = mlp(DENSE, 64, width), mlp(width + 21, 64, 32, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Map (batch, dense) and (batch, fields) to a probability."""
        x = F.relu(self.bottom(dense))
        rows = [table(sparse[:, i : i + 1]) for i, table in enumerate(self.tables)]
        batch, d = x.shape
        t = torch.cat([x, *rows], dim=1).view((batch, -1, d))
        z = torch.bmm(t, torch.transpose(t, 1, 2))
        n = FIELDS + 1
        li = torch.tensor([i for i in range(n) for _ in range(i)])
        lj = torch.tensor([j for i in range(n) for j in range(i)])
        return torch.sigmoid(self.top(torch.cat([x, z[:, li, lj]], dim=1)))


def dlrm() -> Built:
    """Pairwise interactions."""
    return DLRM(), (torch.randn(2, DENSE), features())


class DeepFM(nn.Module):
    """A factorization machine and layers over the same embeddings."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.arange(FIELDS) * VALUES)
        self.offsets: Tensor
        self.linear, self.embed = nn.Embedding(FIELDS * VALUES, 1), nn.Embedding(FIELDS * VALUES, width)
        self.bias = nn.Parameter(torch.zeros(1))
        self.deep = nn.Sequential(
            nn.Linear(FIELDS * width, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1)
        )

    def forward(self, sparse: Tensor) -> Tensor:
        """Map (batch, fields) to a probability."""
        x = sparse + self.offsets.unsqueeze(0)
        e = self.embed(x)
        pairs = 0.5 * (e.sum(dim=1) ** 2 - (e**2).sum(dim=1)).sum(dim=1, keepdim=True)
        wide = self.linear(x).sum(dim=1) + self.bias
        return torch.sigmoid((wide + pairs + self.deep(e.view(-1, FIELDS * e.shape[-1]))).squeeze(1))


def deepfm() -> Built:
    """Factorization machine."""
    return DeepFM(), (features(),)


class TwoTower(nn.Module):
    """Users and items as vectors of length 1, compared by cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(VALUES, 32), nn.Embedding(VALUES, 32)
        self.left, self.right = mlp(32 + DENSE, 64, 48), mlp(32, 64, 48)

    def forward(self, user: Tensor, dense: Tensor, item: Tensor) -> Tensor:
        """Map a user, its features, and an item to a score."""
        left = self.left(torch.cat([self.users(user), dense], dim=-1))
        return F.cosine_similarity(left, self.right(self.items(item)), dim=-1) / 0.07


def two_tower() -> Built:
    """Cosine similarity."""
    return TwoTower(), (torch.randint(VALUES, (2,)), torch.randn(2, DENSE), torch.randint(VALUES, (2,)))


class CrossNet(nn.Module):
    """Explicit crosses with low-rank experts beside deep layers."""

    def __init__(self, width: int = 48, rank: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(DENSE, width)
        self.u, self.v = (
            nn.ParameterList(nn.Parameter(0.2 * torch.randn(width, rank)) for _ in range(2)) for _ in range(2)
        )
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.deep, self.head = mlp(width, 64, 48), nn.Linear(width + 48, 1)

    def forward(self, dense: Tensor) -> Tensor:
        """Map (batch, dense) to a logit."""
        x0 = self.first(dense)
        x = x0
        for u, v, bias in zip(self.u, self.v, self.bias, strict=True):
            x = x0 * (torch.tanh(x @ v) @ u.t() + bias) + x
        return self.head(torch.cat([x, F.relu(self.deep(x0))], dim=-1))


def dcn_v2() -> Built:
    """Deep and cross network."""
    return CrossNet(), (torch.randn(2, DENSE),)


class CompressedInteraction(nn.Module):
    """Outer products of feature maps, compressed by convolutions of width 1."""

    def __init__(self, width: int = 16, maps: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(VALUES, width)
        self.conv1, self.conv2 = nn.Conv1d(FIELDS * FIELDS, maps, 1), nn.Conv1d(FIELDS * maps, maps, 1)
        self.head = nn.Linear(2 * maps, 1)

    def forward(self, sparse: Tensor) -> Tensor:
        """Map (batch, fields) to a logit."""
        x0 = self.embed(sparse)
        b, _, d = x0.shape
        h1 = F.relu(self.conv1(torch.einsum("bhd,bmd->bhmd", x0, x0).reshape(b, -1, d)))
        h2 = F.relu(self.conv2(torch.einsum("bhd,bmd->bhmd", h1, x0).reshape(b, -1, d)))
        return self.head(torch.cat([h1, h2], dim=1).sum(dim=-1))


def xdeepfm() -> Built:
    """Compressed interaction network."""
    return CompressedInteraction(), (features(),)


class MMoE(nn.Module):
    """Shared experts, a gate and a tower for each task."""

    def __init__(self, experts: int = 3, width: int = 48) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(DENSE, 64, width) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(DENSE, experts, bias=False) for _ in range(2))
        self.towers = nn.ModuleList(mlp(width, 32, 1) for _ in range(2))

    def forward(self, dense: Tensor) -> tuple[Tensor, ...]:
        """Map (batch, dense) to a logit for each task."""
        outputs = torch.stack([expert(dense) for expert in self.experts], 1)
        mixed = [torch.matmul(gate(dense).softmax(1).unsqueeze(1), outputs).squeeze(1) for gate in self.gates]
        return tuple(tower(x) for tower, x in zip(self.towers, mixed, strict=True))


def mmoe() -> Built:
    """Multi-gate mixture of experts."""
    return MMoE(), (torch.randn(2, DENSE),)


class InterestNetwork(nn.Module):
    """Each item of the history is weighed by its match with the candidate; padding is masked."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.items = nn.Embedding(VALUES, width, padding_idx=0)
        self.attention = nn.Sequential(nn.Linear(4 * width, 48), nn.PReLU(), nn.Linear(48, 1))
        self.head = nn.Sequential(nn.Linear(2 * width, 48), nn.PReLU(48), nn.Linear(48, 2))

    def forward(self, history: Tensor, candidate: Tensor) -> Tensor:
        """Map (batch, items) and (batch,) to logits."""
        h, c = self.items(history), self.items(candidate)
        q = c.unsqueeze(1).expand_as(h)
        scores = self.attention(torch.cat([q, h, q - h, q * h], dim=-1)).squeeze(-1)
        weights = scores.masked_fill(history.eq(0), -1e9).softmax(-1)
        interest = torch.sum(weights.unsqueeze(-1) * h, dim=1)
        return self.head(torch.cat([interest, c], dim=-1))


def din() -> Built:
    """Deep interest network."""
    return InterestNetwork(), (torch.randint(VALUES, (2, 10)), torch.randint(VALUES, (2,)))


class TabTransformer(nn.Module):
    """Fields as tokens through torch's encoder, dense features normalized, layers on both."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.column = nn.Embedding(VALUES, width), nn.Parameter(torch.randn(FIELDS, width))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 4, 64, batch_first=True), 2)
        self.norm, self.head = nn.LayerNorm(DENSE), mlp(FIELDS * width + DENSE, 64, 3)

    def forward(self, sparse: Tensor, dense: Tensor) -> Tensor:
        """Map both kinds of features to logits."""
        x = self.encoder(self.embed(sparse) + self.column)
        return self.head(torch.cat((x.flatten(1), self.norm(dense)), dim=-1))


def tab_transformer() -> Built:
    """Contextual embeddings of columns."""
    return TabTransformer(), (features(), torch.randn(2, DENSE))


RECOMMENDERS: dict[str, Architecture] = {
    "dlrm": Architecture(dlrm, "Naumov et al., 2019", ("top.4",)),
    "deepfm": Architecture(deepfm, "Guo et al., 2017", ("deep.4", "linear")),
    "two_tower": Architecture(two_tower, "Yi et al., 2019", ()),
    "dcn_v2": Architecture(dcn_v2, "Wang et al., 2021", ("head",)),
    "xdeepfm": Architecture(xdeepfm, "Lian et al., 2018", ("head",)),
    "mmoe": Architecture(mmoe, "Ma et al., 2018", ("towers.0.2", "towers.1.2", "gates.0", "gates.1")),
    "din": Architecture(din, "Zhou et al., 2018", ("head.2", "attention.2")),
    "tab_transformer": Architecture(tab_transformer, "Huang et al., 2020", ("head.2",)),
}

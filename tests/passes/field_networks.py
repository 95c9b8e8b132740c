"""Small networks as their authors write them: computed weights, folded samples, slices, shifts, warps, noise, casts."""

import math

import torch
from rule_networks import C, Case, L, images, parameter
from torch import Tensor, nn
from torch.nn import functional as F


class ScaledStandardConv2d(nn.Conv2d):
    """A convolution of NFNet, whose weight is normalized by ``F.batch_norm``, as timm writes it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, **options):
        super().__init__(inputs, outputs, kernel, **options)
        self.gain, self.scale = parameter(outputs, 1, 1, 1), self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the normalized weight."""
        rows, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * self.scale).view(-1)
        weight = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


class StandardConv2d(nn.Conv2d):
    """Weight standardization (Qiao et al., 2019), as its authors write it."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the normalized weight."""
        weight = self.weight - self.weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        std = weight.view(weight.size(0), -1).std(1).view(-1, 1, 1, 1) + 1e-5
        return self._conv_forward(x, weight / std.expand_as(weight), self.bias)


class ModulatedConv2d(nn.Module):
    """StyleGAN2's modulated convolution (Karras et al., 2020): the samples are groups."""

    def __init__(self, inputs: int, outputs: int, style: int, up: bool = False):
        super().__init__()
        self.weight, self.modulation, self.up = parameter(1, outputs, inputs, 3, 3), L(style, inputs), up
        self.scale = 1 / math.sqrt(inputs * 9)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Convolve each sample with its own weight."""
        batch, channels, height, width = x.shape
        weight = self.scale * self.weight * self.modulation(style).view(batch, 1, channels, 1, 1)
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        outputs, x = weight.shape[1], x.view(1, batch * channels, height, width)
        if self.up:
            weight = weight.transpose(1, 2).reshape(batch * channels, outputs, 3, 3)
            y = F.conv_transpose2d(x, weight, stride=2, groups=batch)
        else:
            y = F.conv2d(x, weight.view(batch * outputs, channels, 3, 3), padding=1, groups=batch)
        return y.view(batch, outputs, y.shape[2], y.shape[3])


class Deformable(nn.Module):
    """Deformable attention (Zhu et al., 2021) on one level: heads are folded into the batch."""

    def __init__(self, width: int, heads: int, points: int):
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets, self.weights = L(width, heads * points * 2), L(width, heads * points)
        self.values, self.out = L(width, width), L(width, width)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        """Read ``x`` of shape (batch, width, height, width) at positions that the queries ask for."""
        batch, channels, height, width = x.shape
        count, depth = query.shape[1], channels // self.heads
        value = self.values(x.flatten(2).transpose(1, 2)).view(batch, height * width, self.heads, depth)
        value = value.flatten(2).transpose(1, 2).reshape(batch * self.heads, depth, height, width)
        grid = torch.tanh(self.offsets(query)).view(batch, count, self.heads, self.points, 2).transpose(1, 2)
        weights = self.weights(query).view(batch, count, self.heads, self.points).softmax(-1).transpose(1, 2)
        read = F.grid_sample(value, grid.flatten(0, 1), align_corners=False)
        read = (read * weights.reshape(batch * self.heads, 1, count, self.points)).sum(-1)
        return self.out(read.view(batch, channels, count).transpose(1, 2))


def routed_capsules(m, x):
    """Route by agreement (Sabour et al., 2017)."""
    votes = torch.matmul(m.w, m.a(x).view(-1, 10, 4)[:, :, None, :, None]).squeeze(-1)
    logits = torch.zeros(x.shape[0], 10, 3, 1)
    for _ in range(2):
        out = torch.tanh((F.softmax(logits, dim=2) * votes).sum(1, keepdim=True))
        logits = logits + (votes * out).sum(-1, keepdim=True)
    return m.o(out.squeeze(1).flatten(1))


def retained(m, x):
    """Retention, step by step (Sun et al., 2023): zeros of three literal sizes, two of which only views give."""
    q, k, v = (layer(m.a(x)).view(*x.shape[:2], 4, -1) for layer in (m.q, m.k, m.v))
    state, steps = torch.zeros(x.shape[0], 4, 8, 6), []
    for t in range(3):
        state = state * m.decay.sigmoid() + k[:, t, :, :, None] * v[:, t, :, None, :]
        steps.append((q[:, t, :, None, :] @ state).squeeze(2).flatten(1))
    return m.o(torch.stack(steps, 1))


def shifted_in_time(m, x):
    """Shift an eighth of the channels forwards and an eighth backwards in time (Lin et al., 2019)."""
    y = m.a(x).relu()
    frames = y.view(-1, 4, *y.shape[1:])
    later = F.pad(frames[:, 1:, :2], (0, 0, 0, 0, 0, 0, 0, 1))
    earlier = F.pad(frames[:, :-1, 2:4], (0, 0, 0, 0, 0, 0, 1, 0))
    return m.o(m.b(torch.cat([later, earlier, frames[:, :, 4:]], 2).flatten(0, 1)).relu().mean((2, 3)))


def gated_positions(m, x):
    """gMLP's gate (Liu et al., 2021): a convolution of width 1 mixes tokens."""
    u, v = F.gelu(m.b(m.a(x))).chunk(2, -1)
    return m.o(u * m.tokens(m.norm(v)))


def correlated(m, z, x):
    """Correlate depth-wise (Li et al., 2019, SiamRPN++): samples and channels are groups."""
    kernel, x = m.k(m.a(z)), m.s(m.a(x))
    batch, channels = kernel.shape[:2]
    kernel = kernel.view(batch * channels, 1, kernel.size(2), kernel.size(3))
    y = F.conv2d(x.view(1, batch * channels, x.size(2), x.size(3)), kernel, groups=batch * channels)
    return m.o(y.view(batch, channels, y.size(2), y.size(3)).relu())


def generated(m, x):
    """Sum experts of five dimensions (Chen et al., 2020): one weight for each sample."""
    y = m.a(x).relu()
    batch, channels, height, width = y.shape
    weight = torch.mm(m.r(y.mean((2, 3))).sigmoid(), m.w.view(m.w.size(0), -1)).view(-1, channels, 3, 3)
    y = F.conv2d(y.view(1, -1, height, width), weight, padding=1, groups=batch)
    return m.o(y.view(batch, -1, height, width).relu().mean((2, 3)))


def hypernetwork(m, x):
    """Weights of a residual block, made from a learned vector (Ha et al., 2016); 8 channels in and out."""
    y = m.a(x)
    parts = (m.z @ m.first).view(8, 4)
    weight = (parts @ m.second).view(8, 8, 3, 3)
    return m.o((y + F.conv2d(y, weight, padding=1)).relu().mean((2, 3)))


def folded_identity(m, x):
    """A residual sum as a weight (RepVGG): the identity meets rows and columns."""
    return m.o(F.linear(m.a(x), m.w + torch.eye(12)).relu())


def merged_heads(m, x):
    h = m.a(x)
    q, k, v = (torch.einsum("btd,dhk->bthk", h, weight) for weight in (m.q, m.k, m.v))
    weights = torch.einsum("bqhk,bshk->bhqs", q, k).softmax(-1)
    return m.o(torch.einsum("bhqs,bshk->bqhk", weights, v).flatten(2))


def noisy(m, x):
    mean, log_variance = m.mean(m.a(x)), m.spread(m.a(x))
    z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
    empty = torch.empty_like(z).normal_()
    return m.o(F.dropout(m.d(z + empty), 0.5, training=True) * m.gain * torch.rand(x.shape[0], 1))


def casted(m, x):
    y = m.a(x.to(torch.bfloat16)).to(torch.float16).relu().float()
    return m.o(m.b(y) + torch.linspace(0, 1, 6) @ torch.eye(6)[:, :1])


def pairs(m, x):
    h = m.a(x)
    gate, up = h[..., ::2], h[..., 1::2]
    return m.b((up + 1) * gate * torch.sigmoid(gate))


def unmasked_attention(m, x, padding):
    y, weights = m.attention(m.a(x), m.a(x), m.a(x), key_padding_mask=padding)
    return m.o(y) + weights.mean()


PADDING = torch.tensor([[False, False, False, True, True], [False, False, False, False, True]])

FIELD_CASES: dict[str, Case] = {
    "normalizer-free": Case(
        lambda m, x: m.o(m.b(m.a(x).sigmoid()).sigmoid().mean((2, 3))),
        {"a": ScaledStandardConv2d(3, 12, 3), "b": ScaledStandardConv2d(12, 16, 3), "o": L(16, 3)},
        {"a": 12, "b": 16},
        images(3, 8, 8),
    ),
    "standardized weights": Case(
        lambda m, x: m.o(m.b(m.a(x).sigmoid()).relu().mean((2, 3))),
        {"a": StandardConv2d(3, 12, 3), "b": StandardConv2d(12, 16, 3), "o": L(16, 3)},
        {"a": 12, "b": 16},
        images(3, 8, 8),
    ),
    "a weight that is not zero at zero": Case(
        lambda m, x: m.o(F.linear(m.a(x).sigmoid(), m.w.sigmoid())),
        {"a": L(5, 16), "w": parameter(12, 16), "o": L(12, 3)},
        {"w": 12, "w:1": 16},
    ),
    "modulated": Case(
        lambda m, z: m.o(m.c(m.b(m.const.repeat(z.shape[0], 1, 1, 1), m.a(z)).relu(), m.a(z))),
        {
            "const": parameter(1, 12, 4, 4),
            "a": L(5, 10),
            "b": ModulatedConv2d(12, 16, 10),
            "c": ModulatedConv2d(16, 8, 10, up=True),
            "o": C(8, 3, 1),
        },
        {"const:1": 12, "a": 10, "b:1": 16, "c:1": 8},
        (torch.randn(4, 5),),
    ),
    "correlated": Case(
        correlated,
        {"a": C(3, 8, 3), "k": C(8, 12, 3), "s": C(8, 12, 3), "o": C(12, 2, 1)},
        {"a": 8, "k": 12},
        (torch.randn(4, 3, 8, 8), torch.randn(4, 3, 12, 12)),
    ),
    "generated weights": Case(
        generated,
        {"a": C(3, 8, 3, 2), "r": L(8, 4), "w": parameter(4, 12, 8, 3, 3), "o": L(12, 3)},
        {"w": 4, "w:1": 12, "w:2": 8},
        images(3, 9, 9),
    ),
    "a hypernetwork": Case(
        hypernetwork,
        {"a": C(3, 8, 3), "z": parameter(6), "first": parameter(6, 32), "second": parameter(4, 72), "o": L(8, 3)},
        {"z": 6, "a": 8},
        images(3, 8, 8),
    ),
    "a weight with an identity": Case(
        folded_identity,
        {"a": L(5, 12), "w": parameter(12, 12), "o": L(12, 3)},
        {"w": 12},
    ),
    "deformable attention": Case(
        lambda m, x: m.o(m.d(m.q.expand(x.shape[0], -1, -1), m.a(x).relu())),
        {"a": C(3, 16, 3, 2), "q": parameter(1, 5, 16), "d": Deformable(16, 4, 2), "o": L(16, 3)},
        {"q:2": 16, "a": 16, "d.offsets": 4, "d.out": 16},
        images(3, 9, 9),
    ),
    "a warp": Case(
        lambda m, x: m.o(F.grid_sample(m.a(x), m.f(m.a(x)).permute(0, 2, 3, 1).tanh(), align_corners=True)),
        {"a": C(3, 12, 3), "f": C(12, 2, 1), "o": C(12, 2, 1)},
        {"a": 12},
        images(3, 8, 8),
    ),
    "capsules": Case(
        routed_capsules,
        {"a": L(6, 40), "w": parameter(1, 10, 3, 6, 4), "o": L(18, 4)},
        {"w:1": 10, "w:3": 6},
        (torch.randn(4, 6),),
    ),
    "retention": Case(
        retained,
        {"a": L(5, 16), "q": L(16, 32), "k": L(16, 32), "v": L(16, 24), "decay": parameter(1, 4, 1, 1), "o": L(24, 3)},
        {"a": 16, "q": 8, "v": 6},
    ),
    "slices with a step and a start": Case(pairs, {"a": L(5, 16), "b": L(8, 3)}, {"a": 8}),
    "a slice with a step in the middle": Case(
        lambda m, x: m.o(torch.cat([m.a(x)[..., 1:9:2], m.a(x)[..., 10:]], -1)),
        {"a": L(5, 16), "o": L(10, 3)},
        {"a": 4, "a#2": 2, "a#3": 6},
    ),
    "slices shifted in time": Case(
        shifted_in_time,
        {"a": C(3, 16, 3), "b": C(16, 12, 3), "o": L(12, 3)},
        {"a": 2, "a#2": 2, "a#3": 12, "b": 12},
        (torch.randn(8, 3, 8, 8),),
    ),
    "slices that overlap": Case(
        lambda m, x: m.o(torch.cat([m.a(x)[..., 5:9].sigmoid(), m.a(x)[..., 2:6] * 2, m.a(x)[..., 10:]], -1)),
        {"a": L(5, 16), "o": L(14, 3)},
        {"a": 3, "a#2": 6, "a#3": 1, "a#4": 6},
    ),
    "mixed tokens": Case(
        gated_positions,
        {"a": L(5, 12), "b": L(12, 32), "norm": nn.LayerNorm(16), "tokens": nn.Conv1d(7, 7, 1), "o": L(16, 3)},
        {"a": 12, "b": 16},
    ),
    "a kernel along one axis": Case(
        lambda m, x: m.o(m.c(m.b(m.a(x).unsqueeze(1)).relu()).squeeze(1)),
        {"a": L(5, 12), "b": C(1, 8, (3, 1), padding=(1, 0)), "c": nn.ConvTranspose2d(8, 1, 1), "o": L(12, 3)},
        {"a": 12, "b": 8},
    ),
    "attention with its weights and a mask": Case(
        unmasked_attention,
        {"a": L(6, 32), "attention": nn.MultiheadAttention(32, 4, batch_first=True), "o": L(32, 5)},
        {"a": 32, "attention.in_proj_weight": 8, "attention.in_proj_weight#2": 8, "attention.out_proj": 32},
        (torch.randn(2, 5, 6), PADDING),
    ),
    "heads that a view merges": Case(
        merged_heads,
        {"a": L(5, 24), **{name: parameter(24, 4, 8) for name in "qkv"}, "o": L(32, 3)},
        {"q": 24, "q:1": 4, "q:2": 8},
    ),
    "random numbers": Case(
        noisy,
        {"a": L(5, 16), "mean": L(16, 8), "spread": L(16, 8), "d": L(8, 12), "gain": parameter(12), "o": L(12, 3)},
        {"gain": 12, "a": 16, "mean": 8},
        (torch.randn(4, 5),),
    ),
    "casts to half": Case(
        casted, {"a": L(5, 16).to(torch.bfloat16), "b": L(16, 3), "o": L(3, 3)}, {"a": 16, "b": 3}, (torch.randn(4, 5),)
    ),
    "results that nothing uses": Case(
        lambda m, x: m.o(torch.var_mean(m.b(m.a(x)), 1)[1] + m.a(x).max(1)[0] @ m.c),
        {"a": L(5, 16), "b": L(16, 12), "c": parameter(16, 12), "o": L(12, 3)},
        {"c": 16, "c:1": 12},
    ),
}

"""The smallest networks that need one operator rule each."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Formula(nn.Module):
    """Named modules, parameters and buffers, and a function of the module and its inputs."""

    def __init__(self, compute: Callable, parts: dict[str, nn.Module | Tensor]):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.compute = compute

    def forward(self, *inputs):
        return self.compute(self, *inputs)


@dataclass
class Case:
    compute: Callable
    parts: dict[str, nn.Module | Tensor]
    free: dict[str, int]
    """Groups that can go, and their numbers of channels."""
    inputs: tuple[Tensor, ...] = field(default_factory=lambda: (torch.randn(4, 7, 5),))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def images(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(4, *shape),)


def heads(x: Tensor, count: int) -> Tensor:
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def in_einsum(m, x):
    h = m.a(x)
    q, k, v = (layer(h).view(*h.shape[:2], 4, 6) for layer in (m.q, m.k, m.v))
    weights = torch.einsum("bthd,bshd->bhts", q, k).softmax(-1)
    return m.o(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2))


def linear_attention(m, x):
    q, k, v = m.qkv(m.a(x)).view(*x.shape[:2], 3, 4, 8).unbind(2)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    norm = 1 / torch.einsum("bnhd,bhd->bnh", q, k.sum(1))
    return m.o(torch.einsum("bnhd,bhde,bnh->bnhe", q, torch.einsum("bnhd,bnhe->bhde", k, v), norm).flatten(2))


def cross_covariance(m, x):
    q, k, v = m.qkv(m.a(x)).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 4, 1).unbind(0)
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * m.heat).softmax(-1)
    return m.o((weights @ v).permute(0, 3, 1, 2).flatten(2))


def shared_keys(m, x):
    h = m.a(x)
    q, k, v = heads(m.q(h), 8), heads(m.k(h), 2), heads(m.v(h), 2)
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    k, v = (part[:, :, None].expand(-1, 2, 4, 7, 4).reshape(-1, 8, 7, 4) for part in (k, v))
    return m.o(merged(y + (q @ k.mT / 2).softmax(-1) @ v))


def rotary(m, x):
    q, k, v = (heads(part, 4) for part in m.qkv(m.a(x)).split(48, -1))
    angle = torch.outer(torch.arange(7).float(), m.frequency)

    def rotate(part):
        even, odd = part[..., ::2], part[..., 1::2]
        pair = [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()]
        return torch.stack(pair, -1).flatten(-2)

    return m.o(merged(F.scaled_dot_product_attention(rotate(q), rotate(k), v)))


def with_relative_positions(m, x):
    q, k, v = (heads(part, 4) for part in m.qkv(m.a(x)).chunk(3, -1))
    bias = m.table[m.index].permute(2, 0, 1)
    return m.o(merged(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))


def cells(m, x):
    h, c, g = x.new_zeros(x.shape[0], 12), torch.zeros(x.shape[0], 12), torch.zeros(x.shape[0], 10)
    for step in range(3):
        h, c = m.lstm(x[:, step], (h, c))
        g = m.gru(h, g)
    return m.o(g)


def class_token(m, x):
    y = m.a(x).flatten(2).transpose(1, 2)
    return m.o((torch.cat([m.token.expand(y.shape[0], -1, -1), y], 1) + m.positions)[:, 0])


def spatial_attention(m, x):
    y = m.a(x)
    return m.o(y * m.gate(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)).sigmoid())


def rms_by_hand(m, x):
    y = m.a(x)
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * m.scale
    return m.o((y - y.mean(-1, keepdim=True)) / y.std(-1, keepdim=True))


def padded_skip(m, x):
    y = m.a(x).relu()
    return m.o((m.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))).relu().mean((2, 3)))


def shuffled_by_hand(m, x):
    y = m.a(x)
    y = y.view(-1, 8, 2, 2, *y.shape[2:]).permute(0, 1, 4, 2, 5, 3).reshape(-1, 8, 2 * y.shape[2], 2 * y.shape[3])
    return m.o(y)


def last_step(m, x, lengths):
    y = m.gru(x)[0]
    return m.o(y.gather(1, lengths.view(-1, 1, 1).expand(-1, 1, 12)).squeeze(1))


L, C = nn.Linear, nn.Conv2d
QKV = {"a": L(5, 16), "qkv": L(16, 96), "o": L(32, 3)}

CASES: dict[str, Case] = {
    "einsum": Case(
        in_einsum, {"a": L(5, 16), **{n: L(16, 24) for n in "qkv"}, "o": L(24, 3)}, {"a": 16, "q": 6, "v": 6}
    ),
    "linear attention": Case(linear_attention, QKV, {"a": 16, "qkv": 8}),
    "attention of channels": Case(cross_covariance, {**QKV, "heat": parameter(4, 1, 1)}, {"heat": 4, "a": 16}),
    "heads that share keys": Case(
        shared_keys,
        {"a": L(5, 16), "q": L(16, 32), "k": L(16, 8), "v": L(16, 8), "o": L(32, 3)},
        {"a": 16, "q": 4, "v": 4},
    ),
    "rotary positions": Case(
        rotary,
        {"a": L(5, 16), "qkv": L(16, 144), "o": L(48, 3), "frequency": torch.rand(6)},
        {"a": 16, "qkv": 6, "qkv#2": 12},
    ),
    "relative positions": Case(
        with_relative_positions,
        {**QKV, "table": parameter(13, 4), "index": torch.arange(7)[:, None] - torch.arange(7) + 6},
        {"a": 16, "qkv": 8, "qkv#2": 8},
    ),
    "cells": Case(
        cells,
        {"lstm": nn.LSTMCell(5, 12), "gru": nn.GRUCell(12, 10), "o": L(10, 3)},
        {"lstm.weight_ih": 12, "gru.weight_ih": 10},
    ),
    "projected lstm": Case(
        lambda m, x: m.o(m.lstm(x)[0][:, -1]),
        {"lstm": nn.LSTM(5, 16, 2, batch_first=True, proj_size=6), "o": L(6, 3)},
        {"lstm.weight_ih_l0": 16, "lstm.weight_hh_l0:1": 6},
    ),
    "states of an lstm": Case(
        lambda m, x: m.o(m.lstm(x)[1][0].transpose(0, 1).flatten(1)),
        {"lstm": nn.LSTM(5, 16, 2, batch_first=True, bidirectional=True), "o": L(64, 3)},
        {"lstm.weight_ih_l0": 16},
    ),
    "rnn": Case(
        lambda m, x: m.o(m.rnn(x)[0]), {"rnn": nn.RNN(5, 12, batch_first=True), "o": L(12, 3)}, {"rnn.weight_ih_l0": 12}
    ),
    "gather": Case(
        last_step,
        {"gru": nn.GRU(5, 12, batch_first=True), "o": L(12, 3)},
        {"gru.weight_ih_l0": 12},
        (torch.randn(4, 7, 5), torch.tensor([2, 4, 0, 6])),
    ),
    "class token": Case(
        class_token,
        {"a": C(3, 16, 4, 4), "token": parameter(1, 1, 16), "positions": parameter(1, 17, 16), "o": L(16, 3)},
        {"token:2": 16},
        images(3, 16, 16),
    ),
    "bilinear": Case(
        lambda m, x: m.o(m.b(m.a(x), m.c(x))),
        {"a": L(5, 8), "c": L(5, 6), "b": nn.Bilinear(8, 6, 10), "o": L(10, 3)},
        {"a": 8, "c": 6, "b": 10},
    ),
    "gated": Case(lambda m, x: m.o(F.glu(m.a(x), -1)), {"a": L(5, 24), "o": L(12, 3)}, {"a": 12}),
    "statistics of channels": Case(
        spatial_attention,
        {"a": C(3, 12, 3), "gate": C(2, 1, 3, padding=1), "o": C(12, 2, 1)},
        {"a": 12},
        images(3, 8, 8),
    ),
    "a norm by hand": Case(rms_by_hand, {"a": L(5, 12), "scale": parameter(12), "o": L(12, 3)}, {"scale": 12}),
    "zeros for new channels": Case(
        padded_skip,
        {"a": C(3, 8, 3, padding=1), "b": C(8, 16, 3, 2, 1), "o": L(16, 3)},
        {"a": 8, "b": 8},
        images(3, 8, 8),
    ),
    "pixel shuffle by hand": Case(shuffled_by_hand, {"a": C(3, 32, 3), "o": C(8, 4, 1)}, {"a": 8}, images(3, 6, 6)),
    "windows": Case(
        lambda m, x: m.o(F.fold(F.unfold(m.a(x), 3, padding=1), (8, 8), 3, padding=1)),
        {"a": C(3, 6, 1), "o": C(6, 2, 1)},
        {"a": 6},
        images(3, 8, 8),
    ),
    "moved positions": Case(
        lambda m, x: m.o(m.a(x).roll((1, 2), (2, 3)).flip(2).repeat(1, 2, 1, 1)),
        {"a": C(3, 6, 1), "o": C(12, 2, 1)},
        {"a": 6},
        images(3, 8, 8),
    ),
    "groups": Case(
        lambda m, x: m.o(m.norm(m.d(m.c(m.b(m.a(x)))))),
        {
            "a": C(3, 32, 3),
            "b": C(32, 32, 3, groups=8),
            "c": C(32, 16, 1),
            "d": C(16, 32, 3, groups=2),
            "norm": nn.GroupNorm(32, 32),
            "o": C(32, 4, 1),
        },
        {"a": 8, "c": 8, "d": 16},
        images(3, 10, 10),
    ),
    "volumes": Case(
        lambda m, x: m.o(m.b(m.a(x)).mean((2, 3, 4))),
        {"a": nn.Conv3d(2, 8, 3), "b": nn.ConvTranspose3d(8, 6, 2, 2), "o": L(6, 3)},
        {"a": 8, "b:1": 6},
        images(2, 5, 5, 5),
    ),
    "weight norm": Case(
        lambda m, x: m.o(m.a(x).relu()),
        {"a": nn.utils.parametrizations.weight_norm(nn.Conv1d(7, 12, 3)), "o": nn.Conv1d(12, 2, 1)},
        {"a.bias": 12},
    ),
}

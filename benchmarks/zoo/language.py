"""Transformers over tokens: an encoder, a decoder, and a decoder of the newer style."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.architecture import Built

VOCABULARY = 500
LENGTH = 32


class SeparateAttention(nn.Module):
    """A linear layer each for queries, keys and values; scores, softmax and product written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.depth = heads, width // heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.depth).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, length, width)."""
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        weights = self.dropout((torch.matmul(q, k.transpose(-1, -2)) / self.depth**0.5).softmax(-1))
        context = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        y: Tensor = self.output(context.view(x.shape[0], x.shape[1], self.heads * self.depth))
        return y


class BertLayer(nn.Module):
    """Norm after each sum."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.attention = SeparateAttention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.intermediate, self.output = nn.Linear(width, wide), nn.Linear(wide, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        x = self.norm1(x + self.attention(x))
        y: Tensor = self.norm2(x + self.output(F.gelu(self.intermediate(x))))
        return y


class Bert(nn.Module):
    """Embeddings of tokens and positions, layers, a pooler, a classifier."""

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(BertLayer(width, heads, 3 * width) for _ in range(layers)))
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        """Map (batch, length) to logits."""
        x = self.norm(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        logits: Tensor = self.classifier(self.pooler(self.layers(x)[:, 0]).tanh())
        return logits


def bert() -> Built:
    """Separate queries, keys and values, post-norm."""
    return Bert(), (torch.randint(VOCABULARY, (1, LENGTH)),)


class CausalAttention(nn.Module):
    """A packed projection that is split in three, and fused causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.width, dim=2)
        q = q.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        k = k.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        v = v.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))
        return out


class GPTBlock(nn.Module):
    """Norm before attention and before the feed-forward layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return y


class GPT(nn.Module):
    """Embeddings, blocks, and a head that shares its weight with the token embedding."""

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.h = nn.Sequential(*(GPTBlock(width, heads) for _ in range(layers)))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Map (batch, length) to logits for every position."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.size(1), device=ids.device))
        logits: Tensor = self.lm_head(self.ln_f(self.h(x)))
        return logits


def gpt() -> Built:
    """Causal attention, tied embedding."""
    return GPT(), (torch.randint(VOCABULARY, (1, LENGTH)),)


class RotaryAttention(nn.Module):
    """Rotated queries and keys; several heads share a key and a value."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.depth = heads, shared, width // heads
        self.q_proj = nn.Linear(width, heads * self.depth, bias=False)
        self.k_proj = nn.Linear(width, shared * self.depth, bias=False)
        self.v_proj = nn.Linear(width, shared * self.depth, bias=False)
        self.o_proj = nn.Linear(heads * self.depth, width, bias=False)
        angles = torch.outer(torch.arange(LENGTH), 1e4 ** (-torch.arange(0, self.depth, 2) / self.depth))
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))
        self.cos: Tensor
        self.sin: Tensor

    def _rotated(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        return x * self.cos + torch.cat([-two, one], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, length, width)."""
        b, t, _ = x.shape
        q = self._rotated(self.q_proj(x).view(b, t, self.heads, self.depth).transpose(1, 2))
        k = self._rotated(self.k_proj(x).view(b, t, self.shared, self.depth).transpose(1, 2))
        v = self.v_proj(x).view(b, t, self.shared, self.depth).transpose(1, 2)
        k = k.repeat_interleave(self.heads // self.shared, 1)
        v = v.repeat_interleave(self.heads // self.shared, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(b, t, self.heads * self.depth))
        return out


class LlamaBlock(nn.Module):
    """RMS norm, rotary attention, a gated feed-forward layer (SwiGLU)."""

    def __init__(self, width: int, heads: int, shared: int, wide: int) -> None:
        super().__init__()
        self.input_norm, self.post_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = RotaryAttention(width, heads, shared)
        self.gate, self.up = nn.Linear(width, wide, bias=False), nn.Linear(width, wide, bias=False)
        self.down = nn.Linear(wide, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        x = x + self.attention(self.input_norm(x))
        y = self.post_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class Llama(nn.Module):
    """The decoder of most current language models."""

    def __init__(self, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.Sequential(*(LlamaBlock(width, 8, 2, 320) for _ in range(layers)))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map (batch, length) to logits for every position."""
        logits: Tensor = self.lm_head(self.norm(self.layers(self.embed(ids))))
        return logits


def llama() -> Built:
    """Rotary positions, grouped queries, RMS norm, SwiGLU."""
    return Llama(), (torch.randint(VOCABULARY, (1, LENGTH)),)

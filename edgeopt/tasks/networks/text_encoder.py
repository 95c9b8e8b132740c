"""The text network of the ready tasks: a small encoder in the manner of BERT, for texts of any length up to a limit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_INITIAL_STD = 0.02
"""Of the tables, as in BERT (Devlin et al., 2019): with PyTorch's 1, the rate of the other layers hardly moves them."""


class Attention(nn.Module):
    """Attention of each token to the tokens of its own text (Vaswani et al., 2017, section 3.2).

    Args:
        width: Of a token.
        heads: That share the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Map tokens ``(batch, length, width)`` to the same shape.

        Args:
            x: The tokens.
            allowed: ``(batch, 1, 1, length)``, True for tokens that count.
        """
        batch, length, _ = x.shape
        split = (batch, length, self.heads, -1)
        query, key, value = (layer(x).reshape(split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class EncoderLayer(nn.Module):
    """Attention and two linear layers, each normalized before and added to its input (Xiong et al., 2020, pre-LN)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Map tokens ``(batch, length, width)`` to the same shape; ``allowed`` as in ``Attention``."""
        x = x + self.dropout(self.attention(self.norm1(x), allowed))
        out: Tensor = x + self.dropout(self.narrow(functional.gelu(self.wide(self.norm2(x)))))
        return out


class TextEncoder(nn.Module):
    """Embeddings of tokens and positions, layers of attention, the mean over the tokens, and a linear head.

    Args:
        classes: Number of logits.
        rows: Of the table of tokens; those of padding do not count.
        length: Most tokens of a text.
        width: Of a token.
        layers: Number of layers.
        heads: Of each layer's attention.
        dropout: In training.
    """

    def __init__(
        self,
        classes: int,
        rows: int,
        length: int,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(rows, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=_INITIAL_STD)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and a mask of ones and zeros, both int64 ``(batch, length)``, to logits ``(batch, classes)``."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.dropout(self.tokens(input_ids) + self.positions(places))
        allowed = attention_mask[:, None, None, :] > 0
        for layer in self.layers:
            x = layer(x, allowed)
        counts = attention_mask[:, :, None].to(x.dtype)
        mean = (self.norm(x) * counts).sum(1) / counts.sum(1).clamp_min(1)
        logits: Tensor = self.head(mean)
        return logits

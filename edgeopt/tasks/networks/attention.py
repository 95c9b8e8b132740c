"""Layers of attention, which the text and the image network of the ready tasks share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Attention of each token to all tokens of its sample (Vaswani et al., 2017, section 3.2).

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

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Map tokens ``(batch, length, width)`` to the same shape.

        Args:
            x: The tokens.
            allowed: ``(batch, 1, 1, length)``, True for tokens that count; None if all do.
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

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Map tokens ``(batch, length, width)`` to the same shape; ``allowed`` as in ``Attention``."""
        x = x + self.dropout(self.attention(self.norm1(x), allowed))
        out: Tensor = x + self.dropout(self.narrow(functional.gelu(self.wide(self.norm2(x)))))
        return out

"""The text network of the ready tasks: a small encoder in the manner of BERT, for texts of any length up to a limit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeopt.tasks.networks.attention import EncoderLayer

TABLE_STD = 0.02
"""Of the tables, as in BERT (Devlin et al., 2019): with PyTorch's 1, the rate of the other layers hardly moves them."""


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
            nn.init.normal_(table.weight, std=TABLE_STD)

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

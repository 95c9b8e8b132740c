"""Attention: one of torch's own encoder layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Tokens in, one embedding, one encoder layer, logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, length, 5) to (batch, 3)."""
        logits: Tensor = self.head(self.norm(self.layer(self.embed(tokens))).mean(1))
        return logits


def transformer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Layer norms, a residual stream, and fused attention."""
    return Encoder(), (torch.randn(1, 7, 5),)

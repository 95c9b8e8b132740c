"""The vision transformer of the ready image tasks: patches of a small image as tokens."""

from __future__ import annotations

from torch import Tensor, nn

from edgeopt.tasks.networks.attention import EncoderLayer
from edgeopt.tasks.networks.text_encoder import TABLE_STD


class SmallVisionTransformer(nn.Module):
    """Patches, their places, layers of attention, the mean over all patches, and a head (Dosovitskiy et al., 2021).

    Args:
        classes: Number of logits.
        in_channels: Image channels.
        size: Height and width of an image.
        patch: Height and width of a patch; it divides ``size``.
        width: Of a token.
        layers: Number of layers.
        heads: Of each layer's attention.
        dropout: In training.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 1,
        size: int = 28,
        patch: int = 4,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.places = nn.Embedding((size // patch) ** 2, width)
        nn.init.normal_(self.places.weight, std=TABLE_STD)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(batch, in_channels, size, size)`` to logits ``(batch, classes)``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.dropout(tokens + self.places.weight)
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits

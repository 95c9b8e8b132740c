"""A small transformer that tells two kinds of texts apart, by which of two sets of words is more frequent.

Of its table of 4,000 words the data have only a few hundred.
"""

import torch
from torch import nn

import edgeopt

WORDS, USED, LENGTH, WIDTH = 4000, 300, 12, 32


class TextNet(nn.Module):
    """Words, positions, one layer of attention, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens):
        x = self.words(tokens) + self.positions(torch.arange(LENGTH))
        return self.head(self.layer(x).mean(1))


def texts(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts of frequent words, and which kind each is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    words = 13 * torch.randint(USED // 2, (count, LENGTH), generator=generator)
    mine = torch.rand(count, LENGTH, generator=generator) < 0.8
    second = (labels[:, None] == 1) == mine
    return words + 13 * (USED // 2) * second, labels


def batches(count: int, seed: int, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return ``count`` texts in batches."""
    tokens, labels = texts(count, seed)
    return list(zip(torch.split(tokens, size), torch.split(labels, size), strict=True))


def trained() -> nn.Module:
    """Train the network from a fixed seed."""
    torch.manual_seed(0)
    net = TextNet()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for epoch in range(3):
        for tokens, labels in batches(512, epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(tokens), labels).backward()
            optimizer.step()
    return net.eval()


def task():
    """Return the task."""
    return edgeopt.classification(
        trained,
        lambda seed: batches(512, seed),
        batches(256, 1000),
        name="text",
        preprocessing="numbers of words",
        input_names=("tokens",),
        training=edgeopt.Training(epochs=1, optimizer="adamw", learning_rate=1e-3, min_steps=0),
        drop_unseen_rows=True,
    )

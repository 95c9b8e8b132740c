"""Networks with GRU and LSTM layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo.architecture import Built


class GRUClassifier(nn.Module):
    """Frames, two GRU layers, the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(40, 96)
        self.gru = nn.GRU(96, 128, num_layers=2, batch_first=True)
        self.hidden = nn.Linear(128, 64)
        self.head = nn.Linear(64, 12)

    def forward(self, frames: Tensor) -> Tensor:
        """Map (batch, time, 40) to logits."""
        states, _ = self.gru(torch.relu(self.embed(frames)))
        logits: Tensor = self.head(torch.relu(self.hidden(states[:, -1])))
        return logits


def gru() -> Built:
    """A GRU of two layers."""
    return GRUClassifier(), (torch.randn(1, 24, 40),)


class LSTMClassifier(nn.Module):
    """Tokens, a bidirectional LSTM of two layers, a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(400, 96)
        self.lstm = nn.LSTM(96, 96, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.norm = nn.LayerNorm(192)
        self.head = nn.Linear(192, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Map (batch, time) to logits."""
        states, _ = self.lstm(self.embed(ids))
        logits: Tensor = self.head(self.norm(states).mean(1))
        return logits


def lstm() -> Built:
    """A bidirectional LSTM of two layers."""
    return LSTMClassifier(), (torch.randint(400, (1, 24)),)


class CRNN(nn.Module):
    """Convolutions until the height is one, then two bidirectional LSTMs along the width."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 96, 3, 1, 1), nn.BatchNorm2d(96), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(96, 128, 3, 1, 1), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(128, 128, 2), nn.ReLU(),
        )  # fmt: skip
        self.rnn1 = nn.LSTM(128, 96, bidirectional=True, batch_first=True)
        self.between = nn.Linear(192, 96)
        self.rnn2 = nn.LSTM(96, 96, bidirectional=True, batch_first=True)
        self.head = nn.Linear(192, 37)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 1, 32, width) to (batch, steps, 37)."""
        columns = self.features(images).squeeze(2).permute(0, 2, 1)
        states, _ = self.rnn1(columns)
        states, _ = self.rnn2(self.between(states))
        logits: Tensor = self.head(states)
        return logits


def crnn() -> Built:
    """Text in images."""
    return CRNN(), (torch.randn(1, 1, 32, 64),)

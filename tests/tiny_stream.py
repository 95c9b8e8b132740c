"""A streaming task that trains in seconds: only the first of three chunks shows the class, the answer comes last."""

import torch
from torch import nn

import edgeopt

CHUNKS, FEATURES, WIDTH = 3, 12, 24
NO_LABEL = -1
RATE, PEAK = 8000, 4.0
"""The features pass for a sound, so that a sample of the bundle can be given one."""


class Listener(nn.Module):
    """A layer, gated recurrent units of one step, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(FEATURES, 48)
        self.recurrent = nn.GRU(48, WIDTH)
        self.after = nn.Linear(WIDTH, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, chunk, state):
        """Map (batch, features) and (1, batch, width) to logits and the next state."""
        outputs, next_state = self.recurrent(torch.relu(self.before(chunk))[None], state)
        return self.head(torch.relu(self.after(outputs[0]))), next_state


def recordings(count, seed):
    """Return (count, chunks, features) and labels."""
    generator = torch.Generator().manual_seed(seed)
    values = 0.3 * torch.randn(count, CHUNKS, FEATURES, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    for label in range(4):
        values[labels == label, 0, 3 * label : 3 * label + 3] += 1
    return values, labels


def zeros(count):
    return torch.zeros(1, count, WIDTH)


def chunks(count, seed, size=64):
    """Return the chunks of recordings in order; only the first has a state, only the last a label."""
    values, labels = recordings(count, seed)
    batches = []
    for part, part_labels in zip(values.split(size), labels.split(size), strict=True):
        for number in range(CHUNKS):
            state = {"state": zeros(len(part))} if number == 0 else {}
            is_last = number == CHUNKS - 1
            batches.append(
                (
                    {"chunk": part[:, number], **state},
                    part_labels if is_last else torch.full_like(part_labels, NO_LABEL),
                )
            )
    return batches


def trained():
    """Train the network over whole recordings, from a fixed seed."""
    torch.manual_seed(0)
    network = Listener()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for epoch in range(20):
        values, labels = recordings(512, epoch)
        for part, part_labels in zip(values.split(64), labels.split(64), strict=True):
            state = zeros(len(part))
            for number in range(CHUNKS):
                logits, state = network(part[:, number], state)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, part_labels).backward()
            optimizer.step()
    return network.eval()


def task(**members):
    """Return the task; ``members`` replace its own."""
    return edgeopt.classification(
        **{
            "model": trained,
            "train": lambda seed: chunks(512, 100 + seed),
            "eval": chunks(512, 1000),
            "test": chunks(256, 2000),
            "name": "tiny-stream",
            "output_names": ("logits", "next_state"),
            "states": {"state": "next_state"},
            "score_output": "logits",
            "ignore_label": NO_LABEL,
            "preprocessing": {"chunk": edgeopt.SoundPreprocessing(sample_rate=RATE, samples=FEATURES, peak=PEAK)},
            "training": edgeopt.Training(epochs=3, optimizer="adamw", learning_rate=3e-3, min_steps=0),
        }
        | members
    )

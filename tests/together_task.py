"""A task without batch norm, whose training fails in one of several processes if the environment says so."""

import os
import signal

import torch
from torch import nn

import edgeopt

WORKER = os.environ.get("EDGEOPT_WORKER")
DEVICE = os.environ.get("TOGETHER_TASK_DEVICE", "cpu")
FAULT = os.environ.get("TOGETHER_TASK_FAULT", "")


class Rows:
    """Rows of eight numbers in two classes. The last batch has three rows."""

    name = "rows"
    training = edgeopt.Training(epochs=2, learning_rate=0.05, min_steps=0, processes=2, device=DEVICE)

    def build_model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))

    def example_inputs(self):
        return torch.zeros(2, 8)

    def train_batches(self, seed):
        x = torch.randn(51, 8, generator=torch.Generator().manual_seed(seed))
        y = (x.sum(1) > 0).long()
        if FAULT == "uneven" and WORKER == "1":
            x, y = x[:32], y[:32]
        targets = [(y[i : i + 16], torch.zeros(7)) for i in range(0, 51, 16)] if FAULT == "targets" else y.split(16)
        return zip(x.split(16), targets, strict=True)

    def eval_batches(self):
        return self.train_batches(7)

    def loss(self, outputs, targets):
        if WORKER == "1" and FAULT == "error":
            raise ValueError("no loss here")
        if WORKER == "1" and FAULT == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(outputs, targets)

    def score(self, pairs):
        right = [(outputs.argmax(1) == targets) for outputs, targets in pairs]
        return float(sum(map(sum, right)) / sum(map(len, right)))


def task():
    """Return the task."""
    return Rows()

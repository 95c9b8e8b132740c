"""A task whose distillation dies or fails as the file ``how`` in the working folder says; it prints a lot."""

import os
import signal
import sys
from pathlib import Path

from tiny_task import batches, trained
from torch import nn

import edgeopt
from edgeopt.tasks.classification import Classification

HOW = Path("how")
DIED = Path("died")


class Crashing(Classification):
    def distill_loss(self, outputs, teacher, targets):
        print("in the loss")
        how = HOW.read_text()
        if how == "mistake":
            return outputs + "one"
        if how == "always" or (how == "once" and not DIED.exists()):
            DIED.touch()
            print("corrupted size vs. prev_size", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        return nn.functional.mse_loss(outputs, teacher)

    def score(self, pairs):
        print("in the score")
        return super().score(pairs)


def task():
    """Return the task."""
    print("a task is made")
    return Crashing(
        trained,
        lambda seed: batches(128, seed),
        batches(256, 1000),
        name="crashing",
        training=edgeopt.Training(epochs=1, learning_rate=0.05, importance=edgeopt.Importance(method="l2")),
    )

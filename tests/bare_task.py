"""A task of one model on one batch, for tests of what a task's model takes and returns."""

from edgeopt.task import CheckedTask
from edgeopt.task.values import flat_outputs


class BareTask:
    """A task of one model on one batch."""

    def __init__(self, model, example, targets=None, **members):
        self.model, self.example, self.targets = model, example, targets
        self.__dict__ |= members

    def build_model(self):
        return self.model

    def example_inputs(self):
        return self.example

    def train_batches(self, seed):
        return [(self.example, self.targets)]

    def eval_batches(self):
        return [(self.example, self.targets)]

    def loss(self, outputs, targets):
        return flat_outputs(outputs)[0].sum()

    def score(self, pairs):
        return 1.0


def checked(model, example, **members):
    return CheckedTask(BareTask(model, example, **members), "tests")

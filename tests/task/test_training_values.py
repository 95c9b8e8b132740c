"""The values of a task's training are checked before anything runs."""

import pytest
import torch
from test_interface import checked
from torch import nn

from edgeopt.errors import TaskError
from edgeopt.task import Training


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Training(optimizer="adam"), r"tests: training: Invalid enum value 'adam'.*Optimizers are sgd, adamw"),
        (Training(epochs="10"), r"tests: training: Expected `int`, got `str`.*epochs"),
        ({"epochs": 3}, "training has to be an edgeopt.Training"),
    ],
)
def test_a_wrong_value_is_named(training, message):
    with pytest.raises(TaskError, match=message):
        checked(nn.Linear(4, 2), torch.zeros(2, 4), training=training)


def test_known_values_stay():
    training = Training(optimizer="adamw", epochs=3)
    assert checked(nn.Linear(4, 2), torch.zeros(2, 4), training=training).training == training

"""A model that was built under ``torch.inference_mode`` can be traced and trained."""

import torch
from torch import nn

import edgeopt
from edgeopt.passes.network import Network
from edgeopt.task import CheckedTask


def test_a_module_made_in_inference_mode_is_trained_as_a_copy():
    with torch.inference_mode():
        given = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    task = CheckedTask(edgeopt.classification(given, batches, batches), "spec")
    network = Network.trace(task.model, task.example_inputs)
    network.train_module(*task.example_inputs).sum().backward()
    assert all(value.grad is not None for value in network.parameters().values())
    assert next(given.parameters()).is_inference()

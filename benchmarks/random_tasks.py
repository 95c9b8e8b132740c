"""Tasks around networks of the zoo with random weights and random data: for what their score does not matter."""

from __future__ import annotations

import torch

import edgeopt
from benchmarks.zoo import ZOO
from edgeopt.tasks.classification import Classification

BATCH = 8


def random_task(name: str) -> Classification:
    """Return a task whose model is the same in every process."""
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, *inputs[0].shape[1:], generator=generator)
    with torch.no_grad():
        classes = model.eval()(images).shape[1]
    batches = [(images, torch.randint(classes, (BATCH,), generator=generator))]
    return edgeopt.classification(model, batches, batches, name=name)


def mobilenet_v2() -> Classification:
    """Return the depthwise network."""
    return random_task("mobilenet_v2")


def mobilenet_v3() -> Classification:
    """Return the network with squeeze and excitation."""
    return random_task("mobilenet_v3")


def resnet18() -> Classification:
    """Return the plain residual network."""
    return random_task("resnet18")

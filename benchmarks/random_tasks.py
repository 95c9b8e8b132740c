"""Tasks around networks of the zoo with random weights and random data: for what their score does not matter.

``random_tasks.py:NAME`` is the task of the architecture of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
        _, classes, *places = model.eval()(images).shape
    batches = [(images, torch.randint(classes, (BATCH, *places), generator=generator))]
    return edgeopt.classification(model, batches, batches, name=name)


def __getattr__(name: str) -> Callable[[], Classification]:
    """Return the function that makes an architecture's task."""
    if name not in ZOO:
        raise AttributeError(name)
    return partial(random_task, name)

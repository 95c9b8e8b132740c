"""Tasks for networks of the zoo with random weights and random data, for benchmarks that need no score.

``random_tasks.py:NAME`` is the task of the architecture NAME.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import edgeopt
from benchmarks.zoo import ZOO
from edgeopt.tasks.classification import Classification

BATCH_SIZE = 8


def make_random_task(name: str) -> Classification:
    """Return an architecture's task; its weights and data are the same in every process."""
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH_SIZE, *inputs[0].shape[1:], generator=generator)
    with torch.no_grad():
        _, classes, *spatial = model.eval()(images).shape
    batches = [(images, torch.randint(classes, (BATCH_SIZE, *spatial), generator=generator))]
    return edgeopt.classification(model, batches, batches, name=name)


def __getattr__(name: str) -> Callable[[], Classification]:
    """Return the function that makes an architecture's task."""
    if name not in ZOO:
        raise AttributeError(name)
    return partial(make_random_task, name)

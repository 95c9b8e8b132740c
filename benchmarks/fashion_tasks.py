"""Tasks for networks of ``zoo/fashion.py`` that were trained on Fashion-MNIST.

Weights come from ``NAME.safetensors`` in the folder ``EDGEOPT_BENCHMARK_WEIGHTS``. ``benchmarks/allocation.py`` and
``benchmarks/quantization.py`` write them into their ``--cache``.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

import edgeopt
from benchmarks.zoo.fashion import FASHION
from edgeopt.task import Training
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.ready.fashion import Fashion, load_batches

WEIGHTS_VARIABLE = "EDGEOPT_BENCHMARK_WEIGHTS"


def load_trained(name: str) -> nn.Module:
    """Return a network with its trained weights."""
    network = FASHION[name]()
    network.load_state_dict(load_file(Path(os.environ[WEIGHTS_VARIABLE]) / f"{name}.safetensors"))
    return network


def fashion_task(name: str) -> Classification:
    """Return a task with the default task's data and another network."""
    return edgeopt.classification(
        lambda: load_trained(name),
        Fashion.draw_epoch,
        load_batches("selection"),
        test=load_batches("test"),
        name=name,
        training=Training(epochs=8, learning_rate=0.03, min_steps=0),
    )


def depthwise() -> Classification:
    """Return the depthwise network's task."""
    return fashion_task("depthwise")

"""Tasks around networks of ``zoo/fashion.py`` that were trained on Fashion-MNIST.

Weights come from the folder that ``EDGEOPT_BENCHMARK_WEIGHTS`` names: ``NAME.safetensors``, as
``benchmarks/allocation.py`` and ``benchmarks/quantization.py`` leave them in their ``--cache``.
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
from edgeopt.tasks.fashion import Fashion, batches

WEIGHTS = "EDGEOPT_BENCHMARK_WEIGHTS"


def trained(name: str) -> nn.Module:
    """Return a network with its trained weights."""
    network = FASHION[name]()
    network.load_state_dict(load_file(Path(os.environ[WEIGHTS]) / f"{name}.safetensors"))
    return network


def fashion_task(name: str) -> Classification:
    """Return the default task's data and training around another network."""
    return edgeopt.classification(
        lambda: trained(name),
        Fashion.draw_epoch,
        batches("selection"),
        test=batches("test"),
        name=name,
        training=Training(epochs=8, learning_rate=0.03),
    )


def depthwise() -> Classification:
    """Return the depthwise network's task."""
    return fashion_task("depthwise")

"""Tasks for networks of ``zoo/fashion.py`` that were trained on Fashion-MNIST.

Weights come from ``NAME.safetensors`` in the folder ``EDGEOPT_BENCHMARK_WEIGHTS``. ``benchmarks/quantization.py``
writes them into its ``--cache``; other benchmarks call ``provide_weights``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

import edgeopt
from benchmarks.zoo.fashion import TRAINABLE
from edgeopt.task import Training
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.ready.fashion import Fashion, load_batches

WEIGHTS_VARIABLE = "EDGEOPT_BENCHMARK_WEIGHTS"
SHORT_EPOCH_BATCHES = 24
"""Of 128 images: an epoch of the tasks of which dozens of networks are trained."""
SHORT_EPOCHS = 6


def let_processes_import_benchmarks() -> None:
    """Put the repository on the path of the processes that this one starts: they load the tasks of this folder."""
    root = Path(__file__).parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))


def provide_weights(folder: Path, name: str, epochs: int, images: int | None = None) -> None:
    """Train a network unless ``folder`` has its weights, and let the tasks of this file find them there.

    Args:
        folder: For ``NAME.safetensors``.
        name: Of the network.
        epochs: Of the training.
        images: Of the training set; None for all.
    """
    os.environ[WEIGHTS_VARIABLE] = str(folder.resolve())
    weights = folder.resolve() / f"{name}.safetensors"
    if weights.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    script, partial = Path(__file__).with_name("train_fashion.py"), weights.with_suffix(".partial")
    command = [sys.executable, str(script), name, "--epochs", str(epochs), "--out", str(partial)]
    subprocess.run([*command, *([] if images is None else ["--images", str(images)])], check=True)
    partial.replace(weights)


def load_trained(name: str) -> nn.Module:
    """Return a network with its trained weights."""
    network = TRAINABLE[name]()
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


def draw_short_epoch(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a fourth of an epoch of the default task; the same for the same seed."""
    return islice(Fashion.draw_epoch(seed), SHORT_EPOCH_BATCHES)


def short_task(name: str) -> Classification:
    """Return a task whose trainings take a minute or less, with the default task's images."""
    return edgeopt.classification(
        lambda: load_trained(name),
        draw_short_epoch,
        load_batches("selection"),
        test=load_batches("test"),
        name=name,
        training=Training(epochs=SHORT_EPOCHS, learning_rate=0.03, min_steps=0),
    )


def deep_residual() -> Classification:
    """Return the task of the network with six residual blocks."""
    return short_task("deep_residual")


def deep_depthwise() -> Classification:
    """Return the task of the network with six depthwise blocks that can be left out."""
    return short_task("deep_depthwise")

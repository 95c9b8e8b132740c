"""Weights that ready tasks begin with: trained once by ``tools/train_teacher.py``, and kept with the data."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgeopt.errors import DataError


def teacher_path(name: str) -> Path:
    """Return where the trained network of a ready task is kept.

    Raises:
        DataError: ``EDGEOPT_DATA`` is not set.
    """
    root = os.environ.get("EDGEOPT_DATA")
    if not root:
        raise DataError(
            f"Task '{name}' needs its data: set EDGEOPT_DATA to the folder that tools/fetch_data.py downloads them to."
        )
    return Path(root) / "teachers" / f"{name}.safetensors"


def load_teacher(name: str, network: nn.Module) -> nn.Module:
    """Return the network of a ready task with its trained weights.

    Args:
        name: Of the task.
        network: With any weights; they are replaced.

    Raises:
        DataError: it was not trained yet, or the file is damaged.
    """
    path = teacher_path(name)
    train = f"python tools/train_teacher.py {name}"
    if not path.is_file():
        raise DataError(f"{path} does not exist: train the network of task '{name}' once with `{train}`.")
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Train the network again with `{train}`.") from error
    return network

"""Running a model over batches in a separate process: arrays in, arrays out."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.bench.worker import iterate_batches, write_batches
from edgeopt.errors import DataError

__all__ = ["read_batches", "run_arrays", "run_model", "write_batches"]

MAX_SECONDS = 3600.0
"""How long all batches together may take, not counting the time to load."""


def run_model(
    model: Path,
    inputs: Path,
    outputs: Path,
    target: RunTarget,
    *,
    stage: str = "outputs",
) -> None:
    """Run every batch of ``inputs`` through one session in a fresh process and write the outputs.

    Args:
        model: An ``.onnx`` file.
        inputs: A file of ``write_batches``, with the names of the graph's inputs.
        outputs: The file to write, in the same format; written completely or not at all.
        target: Where and how it runs.
        stage: Named in errors.

    Raises:
        ProviderError, StepError, DeviceError: see ``edgeopt.bench.requests.run_request``.
    """
    request = runtime_request("outputs", model, replace(target, inputs=inputs), outputs=outputs)
    run_request(target.device, request, stage, seconds=MAX_SECONDS)


def run_arrays(
    model: Path, batches: Sequence[dict[str, np.ndarray[Any, Any]]], target: RunTarget, stage: str
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Run a model over batches in memory and return the outputs of each.

    Raises:
        ProviderError, StepError, DeviceError: see ``run_model``.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-outputs-") as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        write_batches(inputs, batches)
        run_model(model, inputs, outputs, target, stage=stage)
        return read_batches(outputs)


def read_batches(path: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Read the batches of a file that ``write_batches`` or ``run_model`` wrote.

    Raises:
        DataError: the file is missing or isn't a batch file.
    """
    try:
        return list(iterate_batches(path))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read batches from {path}: {error}") from error

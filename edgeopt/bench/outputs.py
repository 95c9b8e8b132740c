"""Running a model over batches in a process of its own: arrays in, arrays out."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.bench.requests import run_request, runtime_request
from edgeopt.bench.worker import iterate_batches, write_batches
from edgeopt.device.base import Device
from edgeopt.errors import DataError
from edgeopt.records.profile import Profile

__all__ = ["read_batches", "run_model", "write_batches"]

MAX_SECONDS = 3600.0
"""How long all batches together may take, beside the time to load."""


def run_model(
    model: Path,
    inputs: Path,
    outputs: Path,
    device: Device,
    profile: Profile,
    *,
    allow_fallback: tuple[str, ...] = (),
    stage: str = "outputs",
) -> None:
    """Run every batch of ``inputs`` through one session in a fresh process, and write what comes out.

    Args:
        model: An ``.onnx`` file.
        inputs: A file of ``write_batches``: keys ``INDEX/NAME`` for the graph's inputs.
        outputs: Where the outputs go, in the same form; written whole or not at all.
        device: Where the worker runs.
        profile: Providers and threads.
        allow_fallback: As in ``edgeopt.bench.measure.measure``.
        stage: Named by errors.

    Raises:
        ProviderError, StepError, DeviceError: see ``edgeopt.bench.requests.run_request``.
    """
    request = runtime_request(
        "outputs", str(model), profile, allow_fallback=allow_fallback, inputs=str(inputs), outputs=str(outputs)
    )
    run_request(device, request, stage, seconds=MAX_SECONDS)


def read_batches(path: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Read the batches of a file that ``write_batches`` or ``run_model`` wrote.

    Raises:
        DataError: the file is missing or is no such file.
    """
    try:
        return list(iterate_batches(path))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read batches from {path}: {error}") from error

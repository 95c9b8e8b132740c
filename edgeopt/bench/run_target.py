"""Where and how the model of a finished bundle runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.device.base import Device
from edgeopt.records.measurement import DeviceKind
from edgeopt.records.profile import Profile


@dataclass(frozen=True)
class RunTarget:
    """A device, and what its sessions run with."""

    device: Device
    kind: DeviceKind
    """What the device is to the target."""
    profile: Profile
    """Providers, threads and the timing rule."""
    allow_fallback: tuple[str, ...] = ()
    """As in ``edgeopt.bench.measure.measure``."""

    def outputs(
        self, model: Path, batches: Sequence[dict[str, NDArray[Any]]], stage: str
    ) -> list[dict[str, NDArray[Any]]]:
        """Run a model over batches there and return what comes out of each.

        Raises:
            ProviderError, StepError, DeviceError: see ``edgeopt.bench.outputs.run_model``.
        """
        with tempfile.TemporaryDirectory(prefix="edgeopt-check-") as folder:
            inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
            write_batches(inputs, batches)
            run_model(model, inputs, outputs, self.device, self.profile, allow_fallback=self.allow_fallback,
                      stage=stage)  # fmt: skip
            return read_batches(outputs)

"""Whether the devices of a pool are alike: one file takes the same time on each, also while all of them measure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from edgeopt.bench.measure import measure
from edgeopt.bench.run_target import RunTarget
from edgeopt.device.base import Device
from edgeopt.device.pool import DevicePool
from edgeopt.errors import ConfigError
from edgeopt.statistics import latency_interval_ms

LARGEST_RATIO = 1.1
"""Of the longest median time of the file to the shortest. Processes on one device differ by 3 to 5 %."""
_MEDIAN = 50.0


def check_alike(model: Path, target: RunTarget) -> None:
    """Time a file on the first device of a pool alone, and then on all of them side by side.

    Devices that share a machine slow one another down, and are found out as well.

    Args:
        model: An ``.onnx`` file, for all of them.
        target: Where files run; unless that is a pool, nothing is done.

    Raises:
        ConfigError: the times are too far apart.
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    pool = target.device
    if not isinstance(pool, DevicePool):
        return

    def median_ms(device: Device) -> float:
        own = replace(target, device=device)
        found = measure(model, own, percentile=_MEDIAN, max_latency_ms=None, progress=lambda _: None)
        return latency_interval_ms(found, _MEDIAN).value

    alone = median_ms(pool.devices[0])
    with ThreadPoolExecutor(len(pool.devices)) as threads:
        together = list(threads.map(median_ms, pool.devices))
    if max(alone, *together) > LARGEST_RATIO * min(alone, *together):
        shown = " and ".join(f"{ms:.3g} ms on {one.uri}" for ms, one in zip(together, pool.devices, strict=True))
        raise ConfigError(
            f"the devices are not alike, or they share a machine: the baseline takes {alone:.3g} ms on "
            f"{pool.devices[0].uri} alone, and side by side {shown}. Up to {LARGEST_RATIO - 1:.0%} are allowed: name "
            "one of them, or build for each by itself."
        )

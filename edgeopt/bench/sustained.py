"""A sustained run: one file without a pause, as long as an app would, to see whether the device slows down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.bench.compare import clock_of
from edgeopt.bench.requests import ask_worker, file_sha256, runtime_request
from edgeopt.device.base import Device
from edgeopt.records.measurement import DeviceInfo as DeviceRecord
from edgeopt.records.measurement import DeviceKind, Sustained
from edgeopt.records.profile import Profile
from edgeopt.statistics import BOOTSTRAP_REPEATS, Interval, expanded_tail

_STAGE = "sustained run"

TENTHS = 10
"""A sustained run is looked at in so many parts; each holds as many blocks."""

LASTING_TENTHS = 3
"""A device that slowed itself down stays slow: as many tenths at the end have to show it, not a burst of other load."""

THROTTLING_RATIO = 0.02
"""A change of a sustained run below this is called none: processes of one file differ by as much."""

BLOCKS = 10 * TENTHS
"""Equal parts of the time; their medians are what is resampled."""

MOST_SAMPLES = 1000
"""Of a block, evenly spread over it: minutes of a quick network would be millions."""


def sustain(
    model: Path,
    device: Device,
    profile: Profile,
    *,
    seconds: float,
    kind: DeviceKind,
    batch_size: int,
    allow_fallback: tuple[str, ...],
    inputs: Path | None,
    progress: Callable[[str], None],
) -> Sustained:
    """Run a model without a pause.

    Args:
        model: An ``.onnx`` file.
        device: Where the worker runs.
        profile: Providers and threads.
        seconds: How long.
        kind: What the device is to the target.
        batch_size: Samples a run.
        allow_fallback: As in ``edgeopt.bench.measure.measure``.
        inputs: A ``.npz`` with one array for each graph input; None for random values.
        progress: Is told in a few words what happens now.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    sha256 = file_sha256(model, _STAGE)
    name, environment = device.describe()
    request = runtime_request(
        "serve", str(model), profile, allow_fallback=allow_fallback, batch_size=batch_size,
        inputs=str(inputs) if inputs else "",
    )  # fmt: skip
    request = msgspec.structs.replace(request, warmup_seconds=min(request.warmup_seconds, seconds / BLOCKS))
    block = {"warmup_runs": 0, "min_runs": 1, "min_seconds": seconds / BLOCKS, "max_seconds": request.max_seconds}
    answers: list[dict[str, Any]] = []
    with device.start() as worker:
        ask_worker(worker, request, request, _STAGE, seconds=request.max_seconds)
        for index in range(BLOCKS):
            progress(f"running without a pause, {seconds * index / BLOCKS:.0f} of {seconds:.0f} s")
            answers.append(ask_worker(worker, block, request, _STAGE, seconds=seconds))
    return Sustained(
        sha256=sha256,
        seconds=seconds,
        wall_ns=tuple(_thinned(answer["wall_ns"]) for answer in answers),
        cpu_ns=tuple(_thinned(answer["cpu_ns"]) for answer in answers),
        clock=clock_of(profile, request),
        temperatures_c=tuple(answer.get("temperature_c") for answer in answers),
        device=DeviceRecord(uri=device.uri, kind=kind, id=name),
        environment=environment,
    )


def _thinned(samples: list[int]) -> tuple[int, ...]:
    return tuple(samples[:: -(-len(samples) // MOST_SAMPLES)])


def sustained_ratio(sustained: Sustained, seed: int = 0) -> Interval:
    """Estimate how many times as long a run takes in the last tenth of a sustained run as in the first.

    The medians of blocks are resampled within each of the two tenths, as runs that follow each other are not
    independent; the interval of 95 % is widened for the few blocks as in ``percentile_interval``.
    """
    medians = _block_medians(sustained)
    first, last = medians[0], medians[-1]
    rng, shape = np.random.default_rng(seed), (BOOTSTRAP_REPEATS, len(first))
    drawn = [np.median(part[rng.integers(0, len(part), shape)], axis=1) for part in (first, last)]
    value, tail = float(np.median(last) / np.median(first)), expanded_tail(len(first), 0.95)
    low, high = np.quantile(drawn[1] / drawn[0], [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def sustained_verdict(sustained: Sustained) -> Literal["slower", "faster", "no difference"]:
    """Say whether a sustained run became slower or faster, outside the noise alone.

    The whole interval of ``sustained_ratio`` has to lie more than ``THROTTLING_RATIO`` from 1, and each of the last
    ``LASTING_TENTHS`` has to differ from the first tenth by more than that, in the same direction.
    """
    interval = sustained_ratio(sustained)
    tenths = np.median(_block_medians(sustained), axis=1)
    lasting = tenths[-LASTING_TENTHS:] / tenths[0]
    if interval.low > 1 + THROTTLING_RATIO and np.all(lasting > 1 + THROTTLING_RATIO):
        return "slower"
    if interval.high < 1 - THROTTLING_RATIO and np.all(lasting < 1 - THROTTLING_RATIO):
        return "faster"
    return "no difference"


def _block_medians(sustained: Sustained) -> NDArray[np.float64]:
    """Return the median of each block's runs, one row a tenth; blocks beyond a multiple of ten are left out."""
    blocks = sustained.cpu_ns if sustained.clock == "cpu" else sustained.wall_ns
    medians = np.array([np.median(block) for block in blocks], dtype=np.float64)
    return medians[: len(medians) // TENTHS * TENTHS].reshape(TENTHS, -1)

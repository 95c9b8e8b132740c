"""A sustained run: one file without a pause, for as long as an app would run it, to see if the device slows down.

In: a model and a number of seconds. Out: a ``Sustained`` with raw samples; from that, a ratio and a verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeopt.bench.compare import choose_clock
from edgeopt.bench.requests import ask_worker, file_sha256, runtime_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.records.measurement import DeviceInfo, Sustained
from edgeopt.statistics import BOOTSTRAP_REPEATS, Interval, expanded_tail

_STAGE = "sustained run"

TENTHS = 10
"""A sustained run is judged in this many parts, each with the same number of blocks."""

LASTING_TENTHS = 3
"""A device that slowed itself down stays slow, unlike a burst of other load: this many last tenths must show it."""

THROTTLING_RATIO = 0.02
"""A smaller change during a sustained run counts as no change: processes of one file differ by as much."""

BLOCKS = 10 * TENTHS
"""Equal parts of the time; their medians are resampled."""

MAX_SAMPLES = 1000
"""Samples kept of a block, evenly spread over it: minutes of a quick network would give millions."""


def run_sustained(
    model: Path,
    target: RunTarget,
    *,
    seconds: float,
    progress: Callable[[str], None],
) -> Sustained:
    """Run a model without a pause.

    Args:
        model: An ``.onnx`` file.
        target: Where and how it runs.
        seconds: Length of the run.
        progress: Called with a few words on the current step.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    sha256 = file_sha256(model, _STAGE)
    device = target.device
    name, environment = device.describe()
    request = runtime_request("serve", model, target)
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
        wall_ns=tuple(_thin(answer["wall_ns"]) for answer in answers),
        cpu_ns=tuple(_thin(answer["cpu_ns"]) for answer in answers),
        clock=choose_clock(target),
        temperatures_c=tuple(answer.get("temperature_c") for answer in answers),
        device=DeviceInfo(uri=device.uri, kind=target.kind, id=name),
        environment=environment,
    )


def _thin(samples: list[int]) -> tuple[int, ...]:
    return tuple(samples[:: -(-len(samples) // MAX_SAMPLES)])


def sustained_ratio(sustained: Sustained, seed: int = 0) -> Interval:
    """Estimate the time of a run in the last tenth of a sustained run over that in the first tenth.

    Consecutive runs are not independent, so the medians of blocks are resampled within each of the two tenths. The 95 %
    interval is widened for the small number of blocks, as in ``edgeopt.statistics.percentile_interval``.
    """
    medians = _block_medians(sustained)
    first, last = medians[0], medians[-1]
    rng, shape = np.random.default_rng(seed), (BOOTSTRAP_REPEATS, len(first))
    drawn = [np.median(tenth[rng.integers(0, len(tenth), shape)], axis=1) for tenth in (first, last)]
    value, tail = float(np.median(last) / np.median(first)), expanded_tail(len(first), 0.95)
    low, high = np.quantile(drawn[1] / drawn[0], [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def sustained_verdict(sustained: Sustained) -> Literal["slower", "faster", "no difference"]:
    """Return whether a sustained run became slower or faster by more than the noise.

    The whole interval of ``sustained_ratio`` must be more than ``THROTTLING_RATIO`` away from 1, and each of the last
    ``LASTING_TENTHS`` must differ from the first tenth by more than that, in the same direction.
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
    """Return the median of each block's runs, one row for each tenth; blocks beyond a multiple of ten are left out."""
    blocks = sustained.cpu_ns if sustained.clock == "cpu" else sustained.wall_ns
    medians = np.array([np.median(block) for block in blocks], dtype=np.float64)
    return medians[: len(medians) // TENTHS * TENTHS].reshape(TENTHS, -1)

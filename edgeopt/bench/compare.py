"""The interleaved A/B of two files: pairs of long-running workers that take turns in random order.

In: two models and a profile. Out: a ``Comparison`` with the raw times of every turn.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeopt.bench.requests import ask_worker, expand_provider_name, file_sha256, runtime_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.device.base import Device, WorkerRequest
from edgeopt.errors import DeviceLostError
from edgeopt.records.base import Record
from edgeopt.records.measurement import Comparison
from edgeopt.records.profile import Profile
from edgeopt.statistics import LOOK_PAIRS, is_decided

_STAGE = "compare"


class ComparisonTurns(Record, frozen=True, kw_only=True):
    """How long a comparison takes.

    Short turns matter: a shared machine's speed changes within tenths of a second. Between equal files, turns of 5 ms
    gave a spread of 0.6 %, turns of 50 ms one of 6 %. New processes matter too: one pair in ten or twenty differs by up
    to 10 % for its whole life, so a comparison uses several pairs.
    """

    pairs: int = LOOK_PAIRS[-1]
    """Most pairs of fresh processes; a comparison ends earlier once ``edgeopt.statistics.is_decided``."""
    max_turns: int = 50
    """Most turns of each process of a pair, if ``pair_seconds`` allows them."""
    min_turns: int = 4
    """Fewest turns of each process of a pair."""
    pair_seconds: float | None = None
    """Time for both processes of a pair together; None takes the profile's ``min_seconds``."""
    seconds: float = 0.005
    """Shortest time of one turn."""
    warmup_runs: int = 1
    """Untimed runs at the start of each turn, as the other process had the caches."""
    min_runs: int = 2
    """Fewest timed runs in each turn."""
    warmup_seconds: float = 0.1
    """Warm-up of each process before its first turn."""

    def for_profile(self, profile: Profile) -> ComparisonTurns:
        """Return these turns with ``pair_seconds`` filled in."""
        seconds = profile.timing.min_seconds if self.pair_seconds is None else self.pair_seconds
        return msgspec.structs.replace(self, pair_seconds=seconds)


DEFAULT_COMPARISON_TURNS = ComparisonTurns()


def compare(
    model: Path,
    against: Path,
    target: RunTarget,
    *,
    seed: int = 0,
    turns: ComparisonTurns = DEFAULT_COMPARISON_TURNS,
    progress: Callable[[str], None] = lambda _text: None,
) -> Comparison:
    """Time two files against each other.

    A block of the result is one turn. ``choose_clock`` decides whether CPU or wall time counts.

    Args:
        model: The file in question.
        against: The file that it is compared with.
        target: Where and how both run.
        seed: For the order of turns.
        turns: How many and how long.
        progress: Called with a few words on the current step.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    hashes = [file_sha256(path, _STAGE) for path in (model, against)]
    requests = [
        msgspec.structs.replace(runtime_request("serve", path, target), warmup_seconds=turns.warmup_seconds)
        for path in (model, against)
    ]
    turns = turns.for_profile(target.profile)
    rng, clock = random.Random(seed), choose_clock(target)  # noqa: S311 - an order of turns, not a secret
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    count = None  # the first pair decides for all pairs
    for pair in range(turns.pairs):
        progress(f"comparing, pair {pair + 1} of at most {turns.pairs}")
        blocks += (pair_blocks := _run_pair_with_retry(target.device, requests, turns, count, clock, rng))
        count = len(pair_blocks)
        comparison = Comparison(
            sha256=hashes[0],
            against_sha256=hashes[1],
            blocks_ns=tuple(mine for mine, _ in blocks),
            against_blocks_ns=tuple(other for _, other in blocks),
            blocks_per_pair=count,
            clock=clock,
        )
        if is_decided(comparison):
            break
    return comparison


def choose_clock(target: RunTarget) -> Literal["cpu", "wall"]:
    """Return which times count: CPU time on one thread of the processor, otherwise wall time."""
    providers = {*target.profile.providers, *map(expand_provider_name, target.allow_fallback)}
    return "cpu" if target.profile.threads == 1 and providers == {"CPUExecutionProvider"} else "wall"


def _run_pair_with_retry(*pair: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Run a pair; if the connection to the device breaks, start the pair again, once."""
    try:
        return _run_pair(*pair)
    except DeviceLostError:
        return _run_pair(*pair)


def _run_pair(
    device: Device,
    requests: list[WorkerRequest],
    turns: ComparisonTurns,
    count: int | None,
    clock: Literal["cpu", "wall"],
    rng: random.Random,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Let two fresh workers take turns; only one of them runs at any moment.

    Args:
        device: Where they run.
        requests: The first message of each worker.
        turns: How many and how long.
        count: Exact number of turns; None lets ``turns.pair_seconds`` decide.
        clock: Which times to keep.
        rng: Decides which worker goes first.

    Returns:
        For each turn the times of the first file and those of the second.
    """
    max_seconds = requests[0].max_seconds
    turn = {
        "warmup_runs": turns.warmup_runs,
        "min_runs": turns.min_runs,
        "min_seconds": turns.seconds,
        "max_seconds": max_seconds,
    }
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    with device.start() as first, device.start() as second:
        workers = (first, second)
        for side in rng.sample((0, 1), 2):
            ask_worker(workers[side], requests[side], requests[side], _STAGE, seconds=max_seconds)
        end = time.monotonic() + (turns.pair_seconds or 0.0)
        while len(blocks) < (turns.max_turns if count is None else count):
            if count is None and len(blocks) >= turns.min_turns and time.monotonic() > end:
                break
            answers: dict[int, tuple[int, ...]] = {}
            for side in rng.sample((0, 1), 2):
                answer = ask_worker(workers[side], turn, requests[side], _STAGE, seconds=2 * max_seconds)
                answers[side] = tuple(answer[f"{clock}_ns"])
            blocks.append((answers[0], answers[1]))
    return blocks

"""The interleaved comparison of two files: pairs of persistent workers that take turns in random order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeopt.bench.requests import ask_worker, file_sha256, runtime_request
from edgeopt.device.base import Device, WorkerRequest
from edgeopt.errors import DeviceLostError
from edgeopt.records.base import Record
from edgeopt.records.measurement import Comparison
from edgeopt.records.profile import Profile
from edgeopt.statistics import LOOKS, is_decided

_STAGE = "compare"


class ComparisonTurns(Record, frozen=True, kw_only=True):
    """How long a comparison takes.

    Short turns matter: on a shared machine its speed changes within tenths of a second, and turns of 5 ms gave a
    spread of 0.6 % between equal files where turns of 50 ms gave 6 %. New processes matter too: one pair in ten or
    twenty differs by up to 10 % for as long as it lives, so a comparison rests on several pairs.
    """

    pairs: int = LOOKS[-1]
    """Pairs of fresh processes at most; a comparison ends before, once ``edgeopt.statistics.is_decided``."""
    most: int = 50
    """Turns of each process of a pair, where ``pair_seconds`` allows it."""
    least: int = 4
    pair_seconds: float | None = None
    """Of both processes of a pair together; None is the profile's least time of one process."""
    seconds: float = 0.005
    """Of one turn, at least."""
    warmup_runs: int = 1
    """At the start of each turn: the other one had the caches."""
    min_runs: int = 2
    """In each turn, timed."""
    warmup_seconds: float = 0.1
    """Of each process before its first turn."""

    def of(self, profile: Profile) -> ComparisonTurns:
        """Return the turns with ``pair_seconds`` decided."""
        seconds = profile.timing.min_seconds if self.pair_seconds is None else self.pair_seconds
        return msgspec.structs.replace(self, pair_seconds=seconds)


DEFAULT_COMPARISON_TURNS = ComparisonTurns()


def compare(
    model: Path,
    against: Path,
    device: Device,
    profile: Profile,
    *,
    batch_size: int = 1,
    seed: int = 0,
    allow_fallback: tuple[str, ...] = (),
    inputs: Path | None = None,
    turns: ComparisonTurns = DEFAULT_COMPARISON_TURNS,
    progress: Callable[[str], None] = lambda _text: None,
) -> Comparison:
    """Time two files against each other.

    A block of the result is one turn. CPU time counts on one thread of the processor; wall time elsewhere.

    Args:
        model: The file in question.
        against: The other one.
        device: Where the workers run.
        profile: Providers, threads and the timing rule's warm-up.
        batch_size: Samples a run.
        seed: Of the order of turns.
        allow_fallback: As in ``edgeopt.bench.measure.measure``.
        inputs: A ``.npz`` with one array for each graph input of both; None for random values.
        turns: How many and how long.
        progress: Is told in a few words what happens now.

    Raises:
        ProviderError, StepError, InputError, DeviceError: see ``edgeopt.bench.measure.measure``.
    """
    hashes = [file_sha256(path, _STAGE) for path in (model, against)]
    requests = [
        msgspec.structs.replace(
            runtime_request("serve", str(path), profile, allow_fallback=allow_fallback, batch_size=batch_size),
            inputs=str(inputs) if inputs else "",
            warmup_seconds=turns.warmup_seconds,
        )
        for path in (model, against)
    ]
    turns = turns.of(profile)
    rng, clock = random.Random(seed), clock_of(profile, requests[0])  # noqa: S311 - an order of turns, not a secret
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    count = None  # the first pair decides for all
    for pair in range(turns.pairs):
        progress(f"comparing, pair {pair + 1} of at most {turns.pairs}")
        blocks += (ran := _run_pair_again_where_lost(device, requests, turns, count, clock, rng))
        count = len(ran)
        found = Comparison(
            sha256=hashes[0],
            against_sha256=hashes[1],
            blocks_ns=tuple(mine for mine, _ in blocks),
            against_blocks_ns=tuple(other for _, other in blocks),
            blocks_per_pair=count,
            clock=clock,
        )
        if is_decided(found):
            break
    return found


def clock_of(profile: Profile, request: WorkerRequest) -> Literal["cpu", "wall"]:
    """Return which times judge: CPU time on one thread of the processor, wall time elsewhere."""
    only_cpu = set(request.providers) | set(request.allow_fallback) == {"CPUExecutionProvider"}
    return "cpu" if profile.threads == 1 and only_cpu else "wall"


def _run_pair_again_where_lost(*pair: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Run a pair; the device makes a connection that broke anew, and the pair begins again, once."""
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
        requests: What each serves.
        turns: How many and how long.
        count: How many turns exactly; None lets ``turns.pair_seconds`` decide.
        clock: Which times to keep.
        rng: Decides who is first.

    Returns:
        For each turn the times of the first file and those of the second.
    """
    most = requests[0].max_seconds
    turn = {
        "warmup_runs": turns.warmup_runs,
        "min_runs": turns.min_runs,
        "min_seconds": turns.seconds,
        "max_seconds": most,
    }
    ran: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    with device.start() as first, device.start() as second:
        workers = (first, second)
        for side in rng.sample((0, 1), 2):
            ask_worker(workers[side], requests[side], requests[side], _STAGE, seconds=most)
        end = time.monotonic() + (turns.pair_seconds or 0.0)
        while len(ran) < (turns.most if count is None else count):
            if count is None and len(ran) >= turns.least and time.monotonic() > end:
                break
            answers: dict[int, tuple[int, ...]] = {}
            for side in rng.sample((0, 1), 2):
                answer = ask_worker(workers[side], turn, requests[side], _STAGE, seconds=2 * most)
                answers[side] = tuple(answer[f"{clock}_ns"])
            ran.append((answers[0], answers[1]))
    return ran

"""The interleaved comparison of two files: pairs of persistent workers that take turns in random order."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgeopt.bench.asking import ask_worker, file_sha256, runtime_request
from edgeopt.device.base import Device, Request
from edgeopt.records.base import Record
from edgeopt.records.measurement import Comparison
from edgeopt.records.profile import Profile

STAGE = "compare"


class Turns(Record, frozen=True):
    """How long a comparison takes.

    Short turns matter: on a shared machine its speed changes within tenths of a second, and turns of 5 ms gave a
    spread of 0.4 % between equal files where turns of 50 ms gave 6 %. New processes matter too: about one pair in ten
    differs by 10 % for as long as it lives, so a comparison rests on several pairs.
    """

    pairs: int = 6
    """Pairs of fresh processes; the interval is over them, and six is the least that gives 95 %."""
    turns: int = 60
    """Of each worker of a pair."""
    seconds: float = 0.005
    warmup_runs: int = 2
    """At the start of each turn: the other one had the caches."""
    min_runs: int = 3


DEFAULT_TURNS = Turns()


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
    turns: Turns = DEFAULT_TURNS,
    progress: Callable[[str], None] = lambda _text: None,
) -> Comparison:
    """Time two files against each other.

    One block of the result is all runs of one process; its neighbour in the other file's blocks took turns with it.
    Pooled CPU time is what counts on one thread of the processor; wall time elsewhere.

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
    hashes = [file_sha256(path, STAGE) for path in (model, against)]
    requests = [
        runtime_request(
            "serve",
            str(path),
            profile,
            allow_fallback=allow_fallback,
            batch_size=batch_size,
            inputs=str(inputs) if inputs else "",
        )
        for path in (model, against)
    ]
    rng, clock = random.Random(seed), _clock(profile, requests[0])  # noqa: S311 - an order of turns, not a secret
    blocks: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = ([], [])
    for pair in range(turns.pairs):
        progress(f"comparing, pair {pair + 1} of {turns.pairs}")
        for side, samples in enumerate(_run_pair(device, requests, turns, clock, rng)):
            blocks[side].append(tuple(samples))
    return Comparison(
        sha256=hashes[0],
        against_sha256=hashes[1],
        blocks_ns=tuple(blocks[0]),
        against_blocks_ns=tuple(blocks[1]),
        clock=clock,
    )


def _clock(profile: Profile, request: Request) -> Literal["cpu", "wall"]:
    only_cpu = set(request.providers) | set(request.allow_fallback) == {"CPUExecutionProvider"}
    return "cpu" if profile.threads == 1 and only_cpu else "wall"


def _run_pair(
    device: Device, requests: list[Request], turns: Turns, clock: Literal["cpu", "wall"], rng: random.Random
) -> tuple[list[int], list[int]]:
    """Let two fresh workers take turns; only one of them runs at any moment."""
    turn = {
        "warmup_runs": turns.warmup_runs,
        "min_runs": turns.min_runs,
        "min_seconds": turns.seconds,
        "max_seconds": requests[0].max_seconds,
    }
    samples: tuple[list[int], list[int]] = ([], [])
    with device.start() as first, device.start() as second:
        workers = (first, second)
        for side in rng.sample((0, 1), 2):
            ask_worker(workers[side], requests[side], requests[side], STAGE, seconds=requests[side].max_seconds)
        for _ in range(turns.turns):
            for side in rng.sample((0, 1), 2):
                answer = ask_worker(workers[side], turn, requests[side], STAGE, seconds=2 * requests[side].max_seconds)
                samples[side].extend(answer[f"{clock}_ns"])
    return samples

"""Throttling on synthetic blocks, and one real run."""

import numpy as np
import pytest
from builders import a_device, an_environment
from tiny_models import a_network, a_run_target

from edgeopt.bench.sustained import BLOCKS, MAX_SAMPLES, run_sustained, sustained_ratio, sustained_verdict
from edgeopt.records.measurement import Sustained

RUNS = 50  # in a block


def a_sustained_run(speeds, *, noise=0.02, seed=0, clock="cpu"):
    """Blocks whose median run takes ``speeds`` of a millisecond; the clock that doesn't count shows only noise."""
    rng = np.random.default_rng(seed)
    counted, other = (
        tuple(tuple((1e6 * speed * rng.normal(1, noise, RUNS)).astype(int).tolist()) for speed in relative)
        for relative in (speeds, [1.0] * len(speeds))
    )
    return Sustained(
        sha256="ab",
        seconds=60.0,
        wall_ns=other if clock == "cpu" else counted,
        cpu_ns=counted if clock == "cpu" else other,
        clock=clock,
        temperatures_c=(None,) * len(speeds),
        device=a_device(),
        environment=an_environment(),
    )


def wander(seed, step):
    """Slow changes of a machine's speed that revert, as caused by other load."""
    rng, speed, found = np.random.default_rng(seed), 1.0, []
    for _ in range(BLOCKS):
        speed += 0.3 * (1 - speed) + rng.normal(0, step)
        found.append(speed)
    return found


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_a_device_that_heats_up_and_slows_down_is_detected(clock):
    throttled = a_sustained_run([*np.linspace(1, 1.3, 60), *[1.3] * 40], clock=clock)
    ratio = sustained_ratio(throttled)
    assert 1.25 < ratio.value < 1.32
    assert ratio.low < ratio.value < ratio.high
    assert sustained_verdict(throttled) == "slower"
    assert sustained_verdict(a_sustained_run([1.2] * 30 + [1.0] * 70, clock=clock)) == "faster"


def test_a_steady_device_in_noise_shows_no_difference():
    verdicts = [sustained_verdict(a_sustained_run(wander(seed, 0.02), seed=seed)) for seed in range(100)]
    assert verdicts.count("no difference") >= 97  # the rest happened to end as slow as a hot device


def test_a_burst_of_other_load_at_the_end_is_not_throttling():
    assert sustained_verdict(a_sustained_run([1.0] * 90 + [1.5] * 10)) == "no difference"


def test_a_small_change_counts_as_no_difference():
    assert sustained_verdict(a_sustained_run(np.linspace(1, 1.015, BLOCKS))) == "no difference"


def test_a_real_run_keeps_its_raw_samples(tmp_path):
    model, progress = a_network(tmp_path / "m.onnx"), []
    found = run_sustained(
        model, a_run_target(), seconds=2.0, progress=progress.append,
    )  # fmt: skip
    assert len(found.wall_ns) == len(found.cpu_ns) == len(found.temperatures_c) == BLOCKS
    assert all(0 < len(block) <= MAX_SAMPLES for block in found.wall_ns)
    assert found.clock == "cpu"
    assert progress[-1] == "running without a pause, 2 of 2 s"

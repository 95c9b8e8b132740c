"""A hot phone: its runner reads the temperature and the governor, and lets the processor cool before each run."""

import subprocess
import threading
import time
from pathlib import Path

import pytest
from tiny_models import a_network, a_run_target

from edgeopt.bench.measure import measure
from edgeopt.device.open import open_device
from edgeopt.records.measurement import Measurement
from edgeopt.statistics import find_noise

RUNNER = Path(__file__).parents[2] / "tools" / "runner" / "runner.c"
STEP_SECONDS, MAX_SECONDS = 1, 2


@pytest.fixture
def zone(tmp_path):
    """Return the file of the phone's only thermal zone."""
    for folder in ("class/thermal/thermal_zone0", "devices/system/cpu/cpu0/cpufreq"):
        (tmp_path / "sys" / folder).mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").write_text("schedutil\n")
    return tmp_path / "sys/class/thermal/thermal_zone0/temp"


@pytest.fixture
def device(native, phones, zone, tmp_path):
    """Return a phone whose runner reads that zone every second, for at most two seconds."""
    values = {"SYS": f'"{tmp_path}/sys"', "COOL_STEP_SECONDS": STEP_SECONDS, "COOL_MAX_SECONDS": MAX_SECONDS}
    defines = [f"-D{name}={value}" for name, value in values.items()]
    runner = tmp_path / "runner"
    subprocess.run(["cc", "-std=gnu11", *defines, RUNNER, "-o", runner, "-pthread", "-ldl", "-lm"], check=True)
    return open_device(f"adb:SERIAL1?runner={runner}&library={native}/libonnxruntime.so")


def measure_on(device, tmp_path) -> Measurement:
    return measure(
        a_network(tmp_path / "m.onnx"),
        a_run_target(device=device),
        percentile=50,
        max_latency_ms=None,
        progress=lambda _: None,
    )


def test_a_cool_phone_reports_its_temperature_and_governor_and_runs_without_waiting(device, zone, tmp_path):
    zone.write_text("41250\n")
    found = measure_on(device, tmp_path)
    assert found.environment.governor == "schedutil"
    assert found.environment.temperature_c == pytest.approx(41.25, abs=0.06)
    assert {timing.cooled_seconds for timing in found.timings} == {0}
    assert found.timings[0].temperatures_c == pytest.approx((41.25, 41.25), abs=0.06)
    assert "heat" not in find_noise(found)


def test_a_phone_that_does_not_cool_waits_one_step_before_each_run_and_is_reported_as_hot(device, zone, tmp_path):
    zone.write_text("85000\n")
    found = measure_on(device, tmp_path)
    assert [timing.cooled_seconds for timing in found.timings] == [STEP_SECONDS] * len(found.timings)
    assert find_noise(found)["heat"] == 85.0


def test_a_phone_that_cools_too_slowly_waits_no_longer_than_the_cap(device, zone, tmp_path):
    zone.write_text("190000\n")
    stop = threading.Event()

    def cool() -> None:
        begin = time.monotonic()
        while not stop.wait(0.02):
            part = zone.with_name("part")
            part.write_text(f"{190_000 - 5_000 * (time.monotonic() - begin):.0f}\n")
            part.replace(zone)

    thread = threading.Thread(target=cool)
    thread.start()
    try:
        found = measure_on(device, tmp_path)
    finally:
        stop.set()
        thread.join()
    assert [timing.cooled_seconds for timing in found.timings] == [MAX_SECONDS] * len(found.timings)
    assert 60.0 < find_noise(found)["heat"] < 185.0

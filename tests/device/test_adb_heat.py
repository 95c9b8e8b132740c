"""A phone that is hot: its runner reads temperature and governor, and waits before each run for a cooler processor."""

import subprocess
import threading
import time
from pathlib import Path

import pytest
from tiny_models import a_network, a_quick_profile

from edgeopt.bench.measure import measure
from edgeopt.device.open import open_device
from edgeopt.records.measurement import Measurement
from edgeopt.statistics import noise

RUNNER = Path(__file__).parents[2] / "tools" / "runner" / "runner.c"
STEP_SECONDS, MOST_SECONDS = 1, 2


@pytest.fixture
def zone(tmp_path):
    """Return the file of the phone's only thermal zone."""
    for folder in ("class/thermal/thermal_zone0", "devices/system/cpu/cpu0/cpufreq"):
        (tmp_path / "sys" / folder).mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").write_text("schedutil\n")
    return tmp_path / "sys/class/thermal/thermal_zone0/temp"


@pytest.fixture
def device(native, phones, zone, tmp_path):
    """Return a phone whose runner looks at that zone, a step of a second apart, for two seconds at most."""
    values = {"SYS": f'"{tmp_path}/sys"', "COOL_STEP_SECONDS": STEP_SECONDS, "COOL_MAX_SECONDS": MOST_SECONDS}
    defines = [f"-D{name}={value}" for name, value in values.items()]
    runner = tmp_path / "runner"
    subprocess.run(["cc", "-std=gnu11", *defines, RUNNER, "-o", runner, "-pthread", "-ldl", "-lm"], check=True)
    return open_device(f"adb:SERIAL1?runner={runner}&library={native}/libonnxruntime.so")


def measured(device, tmp_path) -> Measurement:
    return measure(
        a_network(tmp_path / "m.onnx"),
        device,
        a_quick_profile(),
        batch_size=1,
        allow_fallback=(),
        kind="measured",
        percentile=50,
        max_latency_ms=None,
        progress=lambda _: None,
    )


def test_a_cool_phone_tells_its_temperature_and_governor_and_is_not_waited_for(device, zone, tmp_path):
    zone.write_text("41250\n")
    found = measured(device, tmp_path)
    assert found.environment.governor == "schedutil"
    assert found.environment.temperature_c == pytest.approx(41.25, abs=0.06)
    assert {timing.cooled_seconds for timing in found.timings} == {0}
    assert found.timings[0].temperatures_c == pytest.approx((41.25, 41.25), abs=0.06)
    assert "heat" not in noise(found)


def test_a_phone_that_gets_no_cooler_is_waited_for_once_before_each_run_and_said_to_be_hot(device, zone, tmp_path):
    zone.write_text("85000\n")
    found = measured(device, tmp_path)
    assert [timing.cooled_seconds for timing in found.timings] == [STEP_SECONDS] * len(found.timings)
    assert noise(found)["heat"] == 85.0


def test_a_phone_that_cools_too_slowly_is_waited_for_no_longer_than_the_cap(device, zone, tmp_path):
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
        found = measured(device, tmp_path)
    finally:
        stop.set()
        thread.join()
    assert [timing.cooled_seconds for timing in found.timings] == [MOST_SECONDS] * len(found.timings)
    assert 60.0 < noise(found)["heat"] < 185.0

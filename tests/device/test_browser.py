"""A real headless Chromium as the device, with onnxruntime-web."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest
from ssh_server import need_system
from test_runner import a_request
from tiny_models import a_network, a_quick_profile, write_quick_target

from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.device import browser
from edgeopt.device.base import Request, WorkerRefused
from edgeopt.device.local import LocalDevice
from edgeopt.device.open import open_device
from edgeopt.errors import ConfigError, DeviceLostError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
ROOT = Path(__file__).parents[2]
BLOCK = {"warmup_runs": 1, "min_runs": 7, "min_seconds": 0.0, "max_seconds": 5.0}


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """Return a folder with onnxruntime-web: fetched by npm, or the one that the environment names."""
    given = os.environ.get("EDGEOPT_WEB_RUNTIME")
    if given:
        return Path(given)
    need_system(shutil.which("npm"), "npm")
    folder = tmp_path_factory.mktemp("runtime")
    subprocess.run([sys.executable, ROOT / "tools" / "fetch_web_runtime.py", "--out", folder], check=True)
    return folder


@contextlib.contextmanager
def chromium(address: str, profile: Path):
    """Open a page; the program is a wrapper, so its whole group is ended."""
    need_system(CHROMIUM, "Chromium (chromium-headless-shell)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [CHROMIUM, *flags, "--remote-debugging-port=0", address],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def address_of(device) -> str:
    """Wait until a device serves, and return its page's address."""
    while device._server is None:
        time.sleep(0.05)
    return device._server.address


@pytest.fixture
def device(runtime, tmp_path):
    """Return a device whose page a browser has open."""
    opened = open_device(f"browser:?runtime={runtime}")
    server = threading.Thread(target=opened._served)
    server.start()
    with chromium(address_of(opened), tmp_path / "profile"):
        server.join()
        yield opened
    opened.close()


def test_the_browser_is_described_with_its_isolation(device):
    name, environment = device.describe()
    assert name == device.describe()[0]
    assert "Chrome" in environment.processor
    assert environment.features == ("wasm-threads",)
    assert environment.onnxruntime.startswith("1.")


def test_it_times_serves_and_computes_what_this_machine_computes(device, tmp_path):
    model, inputs = a_network(tmp_path / "m.onnx"), tmp_path / "in.npz"
    rng = np.random.default_rng(0)
    write_batches(inputs, [{"x": rng.standard_normal((rows, 32)).astype(np.float32)} for rows in (3, 1)])
    for name, where in (("here", LocalDevice()), ("there", device)):
        run_model(model, inputs, tmp_path / f"{name}.npz", where, a_quick_profile())
    here, there = (read_batches(tmp_path / f"{name}.npz") for name in ("here", "there"))
    assert len(there) == 2
    for expected, found in zip(here, there, strict=True):
        np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-5)  # sums in another order
    timed = device.run(a_request("time", model, inputs=str(inputs), batch_size=2), 60, {})
    assert len(timed["wall_ns"]) >= 20
    assert timed.keys() == LocalDevice().run(a_request("time", model), 60, {}).keys()
    assert device.run(a_request("memory", model), 60, {}) == {"supported": False}
    with device.start() as first, device.start() as second:
        for worker in (first, second):
            worker.ask(a_request("serve", model), 60)
        for worker in (second, first, second):
            assert len(worker.ask(BLOCK, 60)["wall_ns"]) == 7


def test_what_it_cannot_do_it_refuses_with_a_kind(device, tmp_path):
    model = a_network(tmp_path / "m.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    open_ended = a_network(tmp_path / "o.onnx", inputs=("N", "T", 32))
    refusals = (
        (a_request("time", model, providers=("CUDAExecutionProvider",)), "provider"),
        (a_request("time", tmp_path / "broken.onnx"), "model"),
        (a_request("time", tmp_path / "nowhere.onnx"), "model"),
        (a_request("time", open_ended), "input"),
    )
    for request, kind in refusals:
        with pytest.raises(WorkerRefused) as caught:
            device.run(request, 60, {})
        assert caught.value.kind == kind, caught.value


def test_a_browser_that_was_closed_is_lost(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "SILENCE_SECONDS", 3.0)
    device = open_device(f"browser:?runtime={runtime}")
    opening = threading.Thread(target=device._served)
    opening.start()
    with chromium(address_of(device), tmp_path / "profile"):
        opening.join()
    with pytest.raises(DeviceLostError, match="the browser was lost"):
        device.run(Request(mode="describe"), 60, {})
    device.close()


def test_a_page_that_nobody_opens_is_given_up(runtime, monkeypatch, capsys):
    monkeypatch.setattr(browser, "CLAIM_SECONDS", 0.2)
    device = open_device(f"browser:?runtime={runtime}")
    with pytest.raises(DeviceLostError, match="no browser opened the page"):
        device.describe()
    assert "open this page in the browser" in capsys.readouterr().err
    device.close()


def status(address: str, method: str = "GET") -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method=method), timeout=10) as response:
            response.read()
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_token_is_claimed_once_and_nothing_is_served_without_it(runtime):
    device = open_device(f"browser:?runtime={runtime}")
    opening = threading.Thread(target=device._served)
    opening.start()
    address = address_of(device)
    root = address.rsplit("/", 2)[0]
    assert address.startswith("http://127.0.0.1:")
    assert [status(root + path) for path in ("/", "/wrong/", "/wrong/next", "/wrong/ort.wasm.min.mjs")] == [403] * 4
    assert status(address + "next") == 403
    assert status(address + "claim", "POST") == 200
    assert status(address + "claim", "POST") == 403
    opening.join()
    device.close()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("browser:", "fetch_web_runtime.py --out FOLDER"),
        ("browser:?runtime=/nowhere", "ort.wasm.min.mjs is not there"),
        ("browser:http://x", "browser:ADDRESS"),
        ("browser:?threads=2", "no option 'threads'"),
    ],
)
def test_a_browser_that_cannot_be_served_is_an_error_that_says_how(uri, message):
    with pytest.raises(ConfigError, match=message):
        open_device(uri)


def test_bench_measures_in_the_browser(runtime, tmp_path):
    a_network(tmp_path / "m.onnx")
    command = ["bench", "m.onnx", "--target", write_quick_target(tmp_path), "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "edgeopt", *command, "--device", f"browser:?runtime={runtime}"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        line = next(line for line in process.stderr if "open this page" in line)
        with chromium(line.split()[-1], tmp_path / "profile"):
            stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    result = msgspec.json.decode(stdout)
    assert result["measurement"]["device"]["uri"].startswith("browser:")
    assert result["measurement"]["memory"] is None
    assert result["latency_ms"]["p50"] > 0

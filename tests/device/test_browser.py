"""A real headless Chromium with onnxruntime-web as the device."""

import base64
import functools
import hashlib
import os
import pty
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser_page import open_chromium, wait_for_address
from test_runner import a_request
from tiny_models import a_network, a_run_target

from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.device import browser
from edgeopt.device.base import WorkerRefused, WorkerRequest
from edgeopt.device.local import LocalDevice
from edgeopt.device.open import open_device
from edgeopt.errors import ConfigError, DeviceError, DeviceLostError

BLOCK = {"warmup_runs": 1, "min_runs": 7, "min_seconds": 0.0, "max_seconds": 5.0}


def open_page(device, folder: Path, *flags: str):
    """Start a device's server and a browser that opens its page, until the block ends."""
    opening = threading.Thread(target=device._connect_page)
    opening.start()
    return open_chromium(wait_for_address(device), folder / "profile", *flags)


@pytest.fixture
def device(runtime, tmp_path):
    """Return a device whose page is open in a browser."""
    opened = open_device(f"browser:?runtime={runtime}")
    with open_page(opened, tmp_path):
        opened._connect_page()
        yield opened
    opened.close()


def test_the_browser_is_described_with_its_isolation(device):
    name, environment = device.describe()
    assert name == device.describe()[0]
    assert "Chrome" in environment.processor
    assert environment.features == ("cross-origin-isolated",)
    assert environment.onnxruntime.startswith("1.")


def test_it_times_serves_and_computes_the_same_outputs_as_this_machine(device, tmp_path):
    model, inputs = a_network(tmp_path / "m.onnx"), tmp_path / "in.npz"
    rng = np.random.default_rng(0)
    write_batches(inputs, [{"x": rng.standard_normal((rows, 32)).astype(np.float32)} for rows in (3, 1)])
    for name, where in (("here", LocalDevice()), ("there", device)):
        run_model(model, inputs, tmp_path / f"{name}.npz", a_run_target(device=where))
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


def test_it_refuses_impossible_requests_with_a_kind(device, tmp_path):
    model = a_network(tmp_path / "m.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    dynamic = a_network(tmp_path / "o.onnx", inputs=("N", "T", 32))
    refusals = (
        (a_request("time", model, providers=("CUDAExecutionProvider",)), "provider"),
        (a_request("time", model, providers=("CUDAExecutionProvider", "CPUExecutionProvider")), "provider"),
        (a_request("time", tmp_path / "broken.onnx"), "model"),
        (a_request("time", tmp_path / "nowhere.onnx"), "model"),
        (a_request("time", dynamic), "input"),
    )
    for request, kind in refusals:
        with pytest.raises(WorkerRefused) as caught:
            device.run(request, 60, {})
        assert caught.value.kind == kind, caught.value


def test_a_browser_that_was_killed_is_lost_and_may_come_back(runtime, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(browser, "SILENCE_SECONDS", 3.0)
    monkeypatch.setattr(browser, "RELOAD_SECONDS", 0.1)
    device = open_device(f"browser:?runtime={runtime}")
    with open_page(device, tmp_path):
        device._connect_page()
    monkeypatch.setattr(browser, "CLAIM_SECONDS", 0.5)
    with pytest.raises(DeviceLostError, match="no browser opened the page"):
        device.run(WorkerRequest(mode="describe"), 60, {})
    assert "the page was lost; open it again: http://127.0.0.1" in capsys.readouterr().err
    monkeypatch.setattr(browser, "CLAIM_SECONDS", 60.0)
    with open_chromium(wait_for_address(device), tmp_path / "another"):
        assert device.describe()[0]
    device.close()


def test_a_page_that_is_reloaded_during_a_request_runs_it_again(device, tmp_path):
    request = a_request("time", a_network(tmp_path / "m.onnx"), min_seconds=2.0)
    page = device._server.page

    def reload() -> None:
        time.sleep(1.0)
        device._server.disconnect_page(page)  # as the page does
        time.sleep(1.5)
        device._server.connect_page(page)

    reloading = threading.Thread(target=reload)
    reloading.start()
    assert sum(device.run(request, 60, {})["wall_ns"]) > 0.5e9
    reloading.join()


def test_a_message_that_the_network_lost_is_sent_again_and_an_answer_accepted_once(runtime):
    device = open_device(f"browser:?runtime={runtime}")
    opening = threading.Thread(target=device._connect_page)
    opening.start()
    wait_for_address(device)
    server = device._server
    assert server.claim("one")
    opening.join()
    server.send("worker", {"a": 1})
    first = server.next_message("one", 0, 0.1)
    assert first is not None
    assert server.next_message("one", 0, 0.1) == first
    assert server.next_message("one", 1, 0.1) is None
    for _ in range(2):
        server.accept("answer", "worker", "1", b'{"ok": true}')
    assert server.next_answer("worker", seconds=0.1) == {"ok": True}
    assert server.next_answer("worker", seconds=0.1) is None
    server.disconnect_page("one")
    assert server.page is None
    assert server.next_message("one", 1, 60.0) is None
    device.close()


def test_a_web_worker_that_fails_is_an_error_of_the_browser(runtime, tmp_path):
    for name in browser.RUNTIME_FILES:
        (tmp_path / name).write_bytes((runtime / name).read_bytes())
    (tmp_path / "ort.wasm.min.mjs").write_text("this is no script")
    device = open_device(f"browser:?runtime={tmp_path}")
    with open_page(device, tmp_path), pytest.raises(DeviceError, match="Reload the page, or try another browser"):
        device.describe()
    device.close()


def test_a_browser_that_never_answers_is_given_up_on(device, tmp_path):
    request = a_request("time", a_network(tmp_path / "m.onnx"), min_seconds=60.0, max_seconds=60.0)
    with pytest.raises(DeviceError, match="the browser did not answer within 1 s"):
        device.run(request, 1.0, {})
    assert device.describe()[0]


# -- other machines ----------------------------------------------------------------------------------------------------

ELSEWHERE = "phone.test"
RESOLVED = f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"
"""Under this name the page seems to come from another machine, so plain http is not a secure context."""


def public_key_hash(address: str) -> str:
    """Return the hash of a server's public key as Chromium expects it."""
    _, port = address.split("/")[2].split(":")
    pem = ssl.get_server_certificate(("127.0.0.1", int(port)))
    run = functools.partial(subprocess.run, capture_output=True, check=True)
    key = run(["openssl", "x509", "-pubkey", "-noout"], input=pem.encode()).stdout
    der = run(["openssl", "pkey", "-pubin", "-outform", "der"], input=key).stdout
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def test_a_page_for_other_machines_is_secure_and_runs_the_requested_threads(runtime, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(browser, "reachable_address", lambda _: ELSEWHERE)
    device = open_device(f"browser:0.0.0.0?runtime={runtime}")
    opening = threading.Thread(target=device._connect_page)
    opening.start()
    address = wait_for_address(device)
    assert address.startswith(f"https://{ELSEWHERE}:")
    pin = f"--ignore-certificate-errors-spki-list={public_key_hash(address)}"
    with open_chromium(address, tmp_path / "profile", RESOLVED, pin):
        opening.join()
        assert device.describe()[1].features == ("cross-origin-isolated",)
        model = a_network(tmp_path / "m.onnx", width=256)
        for threads in (1, 2):
            assert device.run(a_request("time", model, threads=threads), 60, {})["wall_ns"]
    stderr = capsys.readouterr().err
    der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", device._server.port)))
    assert f"SHA-256 fingerprint {hashlib.sha256(der).digest().hex(':').upper()}" in stderr
    device.close()


def test_a_page_over_plain_http_runs_one_thread_and_says_so(runtime, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(browser, "reachable_address", lambda _: ELSEWHERE)
    device = open_device(f"browser:0.0.0.0?runtime={runtime}&tls=no")
    with open_page(device, tmp_path, RESOLVED):
        assert device.describe()[1].features == ("not-cross-origin-isolated",)
        model = a_network(tmp_path / "m.onnx")
        assert device.run(a_request("time", model, threads=1), 60, {})["wall_ns"]
        with pytest.raises(WorkerRefused, match="runs on 1 thread instead of 2") as caught:
            device.run(a_request("time", model, threads=2), 60, {})
        assert caught.value.kind == "provider"
    assert "the browser will allow one thread" in capsys.readouterr().err
    device.close()


def test_without_openssl_the_error_names_the_alternative(runtime, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"`openssl` is not installed here.*add the option `tls=no`"):
        open_device(f"browser:0.0.0.0?runtime={runtime}").describe()


def test_a_phone_on_a_cable_sees_localhost_and_leaves_nothing_behind(runtime, phones, tmp_path):
    device = open_device(f"browser:?runtime={runtime}&adb=SERIAL1")
    with open_page(device, tmp_path):
        assert device._server.address.startswith("http://localhost:")
        assert device.describe()[1].features == ("cross-origin-isolated",)
    port = device._server.port
    device.close()
    reversals = [request for request in phones.requests if request.startswith("reverse:")]
    assert reversals == [f"reverse:forward:tcp:{port};tcp:{port}", f"reverse:killforward:tcp:{port}"]
    assert any(
        f"am start -a android.intent.action.VIEW -d '{device._server.address}'" in request
        for request in phones.requests
    )


def test_a_qr_code_is_only_drawn_on_a_terminal(monkeypatch, capsys):
    browser.show_qr_code("https://phone.test/")
    assert capsys.readouterr().err == ""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal, os.fdopen(ours, encoding="utf-8") as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        browser.show_qr_code("https://phone.test/")
        drawn = [screen.readline().rstrip() for _ in range(15)]
    assert {len(line) for line in drawn} == {29}  # 25 modules, and a margin of 2 on each side
    assert set("".join(drawn)) <= set("█▀▄ ")


def test_a_page_that_nobody_opens_is_given_up_on(runtime, monkeypatch, capsys):
    monkeypatch.setattr(browser, "CLAIM_SECONDS", 0.2)
    device = open_device(f"browser:?runtime={runtime}")
    with pytest.raises(DeviceLostError, match="no browser opened the page"):
        device.describe()
    assert "open this page in the browser" in capsys.readouterr().err
    device.close()


def request_status(address: str, method: str = "GET") -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method=method), timeout=10) as response:
            response.read()
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_token_is_claimed_once_and_nothing_is_served_without_it(runtime):
    device = open_device(f"browser:?runtime={runtime}")
    opening = threading.Thread(target=device._connect_page)
    opening.start()
    address = wait_for_address(device)
    root = address.rsplit("/", 2)[0]
    assert address.startswith("http://127.0.0.1:")
    assert [request_status(root + path) for path in ("/", "/wrong/", "/wrong/next", "/wrong/ort.wasm.min.mjs")] == [
        403
    ] * 4
    assert request_status(address + "next") == 403
    assert request_status(address + "next/page/0") == 403
    assert request_status(address + "claim/page", "POST") == 200
    assert request_status(address + "claim/page", "POST") == 403
    opening.join()
    device.close()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("browser:", "fetch_web_runtime.py --out FOLDER"),
        ("browser:?runtime=/nowhere", "ort.wasm.min.mjs is missing"),
        ("browser:http://x", "browser:ADDRESS"),
        ("browser:?threads=2", "no option 'threads'"),
        ("browser:?runtime=HERE&tls=yes", "can only be `no`"),
        ("browser:10.0.0.7?runtime=HERE&adb=x", "leave the address out"),
        ("browser:?runtime=HERE&adb=-x", "leave the address out"),
    ],
)
def test_a_wrong_browser_uri_is_an_error_that_says_how_to_write_it(uri, message, runtime):
    with pytest.raises(ConfigError, match=message):
        open_device(uri.replace("HERE", str(runtime)))

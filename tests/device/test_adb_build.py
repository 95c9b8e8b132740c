"""`edgeopt build` and `edgeopt check` on a phone whose cable is pulled."""

import json
import subprocess
import sys

from builds import run_build, start_build, wait_for_worker, write_files
from test_adb import uri_of


def test_a_build_survives_a_pulled_cable_resumes_after_a_lost_phone_and_its_bundle_is_checked_there(
    native, phones, tmp_path
):
    uri = uri_of(native, "SERIAL1")
    write_files(tmp_path)
    with start_build(tmp_path, uri) as process:
        wait_for_worker(process, "measure", phones.runners)
        phones.unplug()
        wait_for_worker(process, "measure", phones.runners)
        phones.phones.clear()
        phones.unplug()
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "adb did not answer within 10 s. Is the phone connected?" in stderr
    assert "Finished trials are kept: run the same command again" in stderr
    assert not (tmp_path / "edgeopt-out").exists()

    phones.phones["SERIAL1"] = "device"
    choice = run_build(tmp_path, uri)
    command = ["check", "edgeopt-out", "--target", "./quick.toml", "--device", uri, "--json"]
    command += ["--score", "m.onnx", "--data", "in.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", *command], cwd=tmp_path, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    statuses = {finding["name"]: finding["status"] for finding in result["findings"]}
    assert {statuses[name] for name in ("y", "latency", "memory", "size", "score")} == {"passed"}
    assert result["score"]["score"]["value"] == choice["winner"]["score"]

"""The commands end to end with a real headless Chromium as the device."""

import json
import subprocess
from pathlib import Path

import pytest
from browser_page import open_chromium
from builds import IMPATIENT, write_files
from tiny_bundles import a_bundle
from tiny_models import a_network, write_quick_target


@pytest.fixture
def edgeopt(runtime, tmp_path):
    """Return a function that runs a command, opens its page, and returns the exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        with subprocess.Popen(
            [*IMPATIENT, *words, "--device", f"browser:?runtime={runtime}"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            line = next((line for line in process.stderr if "open this page" in line), "")
            assert line, "the command ended without a page"
            with open_chromium(line.split()[-1], tmp_path / "profile"):
                stdout, stderr = process.communicate(timeout=300)
        return process.returncode, stdout, stderr

    return run


def test_bench_measures_and_compares_in_the_browser(edgeopt, tmp_path):
    a_network(tmp_path / "m.onnx")
    a_network(tmp_path / "o.onnx", layers=6, width=256)
    code, stdout, stderr = edgeopt(
        "bench", "m.onnx", "--target", write_quick_target(tmp_path), "--against", "o.onnx", "--json"
    )
    assert code == 0, stderr
    result = json.loads(stdout)
    assert result["measurement"]["device"]["uri"].startswith("browser:")
    assert result["measurement"]["device"]["kind"] == "measured"
    assert result["measurement"]["memory"] is None
    assert result["latency_ms"]["p50"] > 0
    assert result["against"]["verdict"] == "faster"


def test_a_build_is_measured_and_scored_in_the_browser_and_its_bundle_is_checked_there(edgeopt, tmp_path):
    target = write_files(tmp_path)
    code, stdout, stderr = edgeopt(
        "build", "m.onnx", "--data", "in.npz", "--target", target, "--memory-mb", "none", "--json"
    )
    assert code == 0, stderr
    choice = json.loads(stdout)
    assert choice["device"]["kind"] == "measured"
    assert choice["proven_on_target"] is True
    assert choice["budget"]["max_peak_memory_bytes"] is None
    assert choice["winner"]["score"] > 0.8
    measured = [trial for trial in choice["trials"] if trial["status"] == "measured"]
    assert len(measured) >= 2
    assert {trial["parities"][-1]["stage"] for trial in measured} == {"device"}

    score = ("--score", "m.onnx", "--data", "in.npz")
    code, stdout, stderr = edgeopt("check", "edgeopt-out", "--target", target, *score, "--json")
    assert code == 0, stdout + stderr
    result = json.loads(stdout)
    assert result["measurement"]["device"]["uri"].startswith("browser:")
    statuses = {finding["name"]: finding["status"] for finding in result["findings"]}
    assert (statuses["y"], statuses["score"]) == ("passed", "passed")
    assert result["score"]["score"]["value"] == choice["winner"]["score"]


def test_a_memory_limit_that_a_browser_cannot_measure_is_missed_not_passed(edgeopt, tmp_path):
    bundle: Path = a_bundle(tmp_path)
    code, stdout, stderr = edgeopt("check", bundle.name, "--target", "./quick.toml", "--json")
    assert code == 3, stderr
    findings = {finding["name"]: finding for finding in json.loads(stdout)["findings"]}
    assert findings["memory"]["status"] == "missed"
    assert "could not be measured; limit: at most" in findings["memory"]["text"]
    assert findings["latency"]["status"] == findings["y"]["status"] == "passed"

"""`edgeopt check` on bundles of a real small model."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundles import a_bundle
from tiny_models import write_quick_target


def check(bundle: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "edgeopt", "check", bundle.name, "--target", "./quick.toml", *arguments]
    return subprocess.run(command, cwd=bundle.parent, capture_output=True, text=True, timeout=120)


def lines(done: subprocess.CompletedProcess) -> dict[str, str]:
    """Return the status of each finding by its name."""
    return {line.split()[2]: line.split()[0] for line in done.stdout.splitlines()[:-1]}


def test_an_intact_bundle_passes_with_a_line_per_finding(tmp_path):
    done = check(a_bundle(tmp_path, min_throughput_per_s=1.0))
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(done) == {
        "all": "passed", "y": "passed", "latency": "passed", "throughput": "passed", "memory": "passed",
        "size": "passed", "score": "note", "device": "note",
    }  # fmt: skip
    assert done.stdout.splitlines()[-1] == "out passes every check on local:"


def test_json_holds_the_findings_and_the_raw_samples(tmp_path):
    done = check(a_bundle(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["schema"], result["status"], result["device"]) == ("edgeopt/check-1", "passed", "local:")
    golden = next(finding for finding in result["findings"] if finding["kind"] == "golden")
    assert golden["found"] == 0.0 < golden["allowed"]
    assert len(result["measurement"]["timings"][0]["wall_ns"]) >= 20


@pytest.mark.parametrize(
    ("limit", "value", "name"),
    [("max_latency_ms", 1e-4, "latency"), ("max_peak_memory_bytes", 1000, "memory"), ("max_size_bytes", 9, "size")],
)
def test_a_missed_limit_ends_with_3(tmp_path, limit, value, name):
    out = a_bundle(tmp_path)
    choice = json.loads((out / "choice.json").read_text())
    choice["budget"][limit] = value
    (out / "choice.json").write_text(json.dumps(choice))
    rehash(out, "choice.json")
    done = check(out)
    assert done.returncode == 3
    assert [key for key, status in lines(done).items() if status == "missed"] == [name]
    assert done.stdout.splitlines()[-1] == "out misses an output or a limit on local:"


def test_a_bundle_without_a_model_ends_with_3(tmp_path):
    done = check(a_bundle(tmp_path, max_size_bytes=1))
    assert done.returncode == 3
    assert lines(done) == {"all": "passed", "model.onnx": "missed"}


def test_outputs_beyond_their_tolerance_end_with_3(tmp_path):
    done = check(a_bundle(tmp_path, wrong=1e6))
    assert done.returncode == 3
    assert lines(done)["y"] == "missed"
    assert "is off by up to 1e+06" in done.stdout


def test_a_model_that_does_not_run_on_the_device_ends_with_3(tmp_path):
    out = a_bundle(tmp_path)
    (out / "model.onnx").write_bytes(b"no model")
    rehash(out, "model.onnx")
    done = check(out)
    assert done.returncode == 3
    assert lines(done)["model.onnx"] == "missed"


def rehash(out: Path, name: str) -> None:
    """Update the manifest, so that a changed file has the hash that it gives."""
    manifest = json.loads((out / "manifest.json").read_text())
    data = (out / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (out / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "name", "text"),
    [
        (lambda out: (out / "model.onnx").write_bytes(b"x"), "model.onnx", "was changed"),
        (lambda out: (out / "golden" / "output-0.bin").unlink(), "golden/output-0.bin", "is missing"),
        (lambda out: (out / "more").write_text(""), "more", "was added"),
    ],
)
def test_a_changed_bundle_is_not_run_and_ends_with_2(tmp_path, spoil, name, text):
    out = a_bundle(tmp_path)
    spoil(out)
    done = check(out)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"bad     file    {name}  {text}",
        "out is not the bundle that was built; nothing was run",
    ]


def test_a_golden_file_outside_of_the_bundle_is_not_read(tmp_path):
    out = a_bundle(tmp_path)
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace('"file": "golden/input-0.bin"', '"file": "../in.npz"'))
    done = check(out)
    assert done.returncode == 2
    assert "../in.npz  is not in the manifest" in done.stdout


def test_a_folder_that_is_not_a_bundle_ends_with_2(tmp_path):
    (tmp_path / "empty").mkdir()
    write_quick_target(tmp_path)
    done = check(tmp_path / "empty")
    assert done.returncode == 2
    assert "manifest.json cannot be read" in done.stderr

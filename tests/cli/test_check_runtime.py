"""`edgeopt check --runtime`: the oldest ONNX Runtime that a target names really runs the file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundles import a_bundle

from edgeopt.errors import DeviceError
from edgeopt.pipeline.verify import runtimes

OLDEST_IS_TO_BE_HAD = sys.version_info < (3, 13)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def check(bundle, cache, *arguments):
    command = [sys.executable, "-m", "edgeopt", "check", bundle.name, "--target", "./quick.toml", *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        command, cwd=bundle.parent, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.skipif(not OLDEST_IS_TO_BE_HAD, reason="onnxruntime 1.17.0 has no package for this Python")
def test_the_oldest_runtime_of_the_target_gives_the_golden_outputs(tmp_path, cache):
    bundle = a_bundle(tmp_path)
    written = []
    for _ in range(2):  # the second time it is there
        done = check(bundle, cache, "--runtime", "oldest", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        (ready,) = cache.rglob(runtimes._READY)
        written.append(ready.stat().st_mtime_ns)
    assert written[0] == written[1]
    here, oldest = json.loads(done.stdout)["results"]
    assert here["device"] == "local:"
    assert oldest["device"] == "onnxruntime 1.17.0, here"
    assert {finding["kind"] for finding in oldest["findings"]} == {"file", "golden"}  # times are not judged
    assert any(finding["kind"] == "golden" and finding["status"] == "passed" for finding in oldest["findings"])


def test_what_is_no_version_is_said_before_anything_runs(tmp_path, cache):
    done = check(a_bundle(tmp_path), cache, "--runtime", "newest")
    assert done.returncode == 2
    assert "--runtime newest is not a version of onnxruntime. Give one, such as 1.17.0, or 'oldest'." in done.stderr


def test_a_version_that_cannot_be_installed_is_a_finding_beside_those_of_the_devices(tmp_path, cache):
    done = check(a_bundle(tmp_path), cache, "--runtime", "0.0.1", "--junit", "found.xml")
    assert done.returncode == 3
    assert "onnxruntime 0.0.1 cannot be installed for Python" in done.stdout
    assert "out passes every check on local:" in done.stdout
    assert (tmp_path / "found.xml").exists()
    assert not list(cache.rglob(".making-*"))


def made(folder):
    """Stand in for an environment that is whole."""
    (folder / runtimes._PYTHON).parent.mkdir(parents=True)
    (folder / runtimes._PYTHON).symlink_to(sys.executable)
    (folder / runtimes._READY).touch()


def test_an_environment_that_was_interrupted_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(runtimes, "_check_version", lambda python, version: None)
    told, python = [], runtimes._root() / f"onnxruntime-1.2.3-python-{sys.version_info[0]}.{sys.version_info[1]}"
    monkeypatch.setattr(runtimes.venv, "create", lambda folder, with_pip: None)
    monkeypatch.setattr(runtimes, "_install", lambda folder, version: made(folder))
    made(python)
    for broken in (runtimes._READY, runtimes._PYTHON):
        (python / broken).unlink()
        assert runtimes.find_runtime("1.2.3", told.append) == python / runtimes._PYTHON
        assert runtimes._is_ready(python)
    assert len(told) == 2
    assert runtimes.find_runtime("1.2.3", told.append) == python / runtimes._PYTHON
    assert len(told) == 2


def test_a_version_that_another_one_hides_is_not_taken_for_it(tmp_path):
    with pytest.raises(DeviceError, match=r"finds onnxruntime .* instead of 0\.1\.2\. Unset PYTHONPATH"):
        runtimes._check_version(Path(sys.executable), "0.1.2")

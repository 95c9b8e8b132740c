"""`edgeopt check --runtime`: the oldest ONNX Runtime that a target names really runs the file."""

import json
import os
import subprocess
import sys

import pytest
from tiny_bundles import a_bundle

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
    for installs in (True, False):  # the second time it is there
        done = check(bundle, cache, "--runtime", "oldest", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("installing onnxruntime 1.17.0" in done.stderr) is installs
    here, oldest = json.loads(done.stdout)["results"]
    assert here["device"] == "local:"
    assert "onnxruntime-1.17.0" in oldest["device"]
    assert oldest["measurement"]["environment"]["onnxruntime"] == "1.17.0"
    assert any(finding["kind"] == "golden" and finding["status"] == "passed" for finding in oldest["findings"])


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("newest", "--runtime newest is not a version of onnxruntime. Give one, such as 1.17.0, or 'oldest'."),
        ("0.0.1", "onnxruntime 0.0.1 cannot be installed for Python"),
    ],
)
def test_what_is_no_version_or_cannot_be_installed_is_said_in_a_sentence(tmp_path, cache, version, sentence):
    done = check(a_bundle(tmp_path), cache, "--runtime", version)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(cache.rglob(".making-*"))

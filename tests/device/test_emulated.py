"""Another processor under qemu: the outputs of a bundle's model are compared there, and nothing is timed."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scored_task import write_scored_task
from tiny_bundles import a_bundle
from tiny_models import a_network, write_quick_target

from edgeopt.device import emulated
from edgeopt.device.base import WorkerRequest
from edgeopt.device.open import open_device
from edgeopt.errors import ConfigError, DeviceError

ROOT = Path(__file__).parents[2]
COMPILER = "aarch64-linux-gnu-gcc"


def run_edgeopt(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *words], cwd=folder, capture_output=True, text=True, timeout=600
    )


def check_bundle(folder: Path, bundle: str, uri: str, *more: str) -> dict[str, dict]:
    """Check a bundle and return the findings by name."""
    done = run_edgeopt(folder, "check", bundle, "--target", "./quick.toml", "--device", uri, "--json", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["measurement"] is None
    return {finding["name"]: finding for finding in result["findings"]}


@pytest.fixture
def same_processor_uri(native, tmp_path, monkeypatch):
    """Return the URI of a fake emulator: a script that runs files for this machine's processor."""
    name = emulated.EMULATORS[platform.machine()]
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / name
    program.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/words"\nshift 4\nexec "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return f"qemu:some-cpu?runner={native}/runner&library={native}/libonnxruntime.so&root=/sysroot"


def test_a_check_compares_golden_outputs_and_nothing_that_an_emulator_cannot_measure(
    same_processor_uri, native, tmp_path
):
    findings = check_bundle(tmp_path, a_bundle(tmp_path).name, same_processor_uri)
    assert {name: finding["status"] for name, finding in findings.items()} == {
        "all": "passed", "y": "passed", "size": "passed", "score": "note", "device": "note",
    }  # fmt: skip
    assert "no real times or memory" in findings["device"]["text"]
    words = (tmp_path / "words").read_text().split()
    assert words == ["-cpu", "some-cpu", "-L", "/sysroot", f"{native}/runner", f"{native}/libonnxruntime.so"]


def test_a_score_is_measured_in_the_emulator(same_processor_uri, tmp_path):
    bundle = a_bundle(tmp_path)
    findings = check_bundle(
        tmp_path, bundle.name, same_processor_uri, "--score", write_scored_task(tmp_path, right=1820)
    )
    assert findings["score"]["status"] == "passed"
    assert findings["scored.py:Scored"]["found"] == 0.91


def test_files_are_not_ranked_by_an_emulators_times(same_processor_uri, tmp_path):
    a_network(tmp_path / "m.onnx")
    target = write_quick_target(tmp_path)
    for command in ("bench", "build"):
        done = run_edgeopt(tmp_path, command, "m.onnx", "--target", target, "--device", same_processor_uri)
        assert done.returncode == 2
        assert "times and memory there say nothing about a real one" in done.stderr


def test_errors_say_what_an_emulator_needs(same_processor_uri, native, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"as in `qemu:\?runner=PATH&library=PATH`; \?runner= is not a file"):
        open_device("qemu:")
    (tmp_path / "foreign").write_bytes(b"\x7fELF" + bytes(14) + (183).to_bytes(2, "little"))
    with pytest.raises(DeviceError, match=r"is built for .* but .*/foreign for aarch64"):
        open_device(f"qemu:?runner={native}/runner&library={tmp_path}/foreign").describe()
    crash = tmp_path / "bin" / emulated.EMULATORS[platform.machine()]
    crash.write_text("#!/bin/sh\necho 'qemu: uncaught target signal 11 (Segmentation fault)' >&2\nkill -SEGV $$\n")
    with pytest.raises(DeviceError, match=r"killed by SIGSEGV.*put a newer one in PATH"):
        open_device(same_processor_uri).describe()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="Install qemu-user"):
        open_device(same_processor_uri).describe()


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory):
    """Return a folder with the cross-compiled runner, and the library from the package index, for aarch64."""
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None or shutil.which(COMPILER) is None:
        pytest.skip(f"needs qemu-user 10.0 or newer, {COMPILER} and libstdc++6-arm64-cross")
    version_text = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout
    if int(re.search(r"version (\d+)", version_text)[1]) < 10:
        pytest.skip(f"needs qemu-user 10.0 or newer (Debian's backports have it); found {version_text.splitlines()[0]}")
    folder = tmp_path_factory.mktemp("aarch64")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
    version = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import version; print(version('onnxruntime'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    subprocess.run([*download, "--platform", "manylinux_2_28_aarch64", f"onnxruntime=={version}"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if "/libonnxruntime.so" in name)
        (folder / "library").write_bytes(wheel.read(name))
    build = [sys.executable, ROOT / "tools" / "build_runner.py", "--cc", COMPILER, "--library", folder / "library"]
    subprocess.run([*build, "--out", folder], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])  # with int8 dot products and matrix products, and without
def test_aarch64_computes_the_same_outputs_as_this_machine_in_float_and_in_int8(aarch64, tmp_path, cpu):
    uri = f"qemu:{cpu}?runner={aarch64}/runner&library={aarch64}/libonnxruntime.so"
    features = open_device(uri).describe()[1].features
    assert ("asimddp" in features) == (cpu == "max")
    findings = check_bundle(tmp_path, a_bundle(tmp_path).name, uri)
    assert findings["y"]["found"] <= findings["y"]["allowed"]

    a_network(tmp_path / "m.onnx", width=128, layers=3)
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).standard_normal((256, 32)).astype(np.float32))
    built = run_edgeopt(tmp_path, "build", "m.onnx", "--data", "in.npz", "--target", "./quick.toml")
    assert built.returncode == 0, built.stderr
    choice = json.loads((tmp_path / "edgeopt-out" / "choice.json").read_text())
    assert "quantize" in {step["step"] for step in choice["winner"]["recipe"]["graph_steps"]}
    findings = check_bundle(tmp_path, "edgeopt-out", uri)
    assert findings["y"]["found"] <= findings["y"]["allowed"]
    print(cpu, findings["y"]["found"], findings["y"]["allowed"])


@pytest.mark.slow
def test_an_emulator_refuses_to_measure(aarch64):
    device = open_device(f"qemu:?runner={aarch64}/runner&library={aarch64}/libonnxruntime.so")
    with pytest.raises(DeviceError, match="no real times or memory"):
        device.run(WorkerRequest(mode="time"), 60, {})
    with pytest.raises(DeviceError, match="no real times"), device.start():
        pass

"""Other versions of ONNX Runtime on this machine, each in an environment of its own.

A target names the oldest that has to run its files: that it does is seen by running them there. Times are not judged:
they are those of another machine and of another runtime than the build's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

from edgeopt.bench.run_target import RunTarget
from edgeopt.bundle.manifest import read_manifest
from edgeopt.bundle.signature import PublicKey
from edgeopt.device.local import LocalDevice
from edgeopt.errors import DeviceError, InputError, StepError
from edgeopt.pipeline.verify.check import check_files, check_golden, check_signature
from edgeopt.pipeline.verify.findings import CheckFinding, CheckResult, device_failed, to_result
from edgeopt.records.profile import Profile

OLDEST = "oldest"
"""In place of a version: the oldest that the target names."""
_VERSION = re.compile(r"\d+\.\d+(\.\d+)?")
_FIRST_WITH_NUMPY_2 = (1, 19)
_MAX_SECONDS = 900.0
_OLD_SECONDS = 3600.0
_READY = "ready"
"""A file that is written into an environment last."""
_INHERITED = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")
"""Variables that would put packages elsewhere, or take them from there."""
_PYTHON = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")


def choose_version(asked: str, oldest: str) -> str:
    """Return a version of ``onnxruntime``, such as ``1.17.0``.

    Args:
        asked: A version, or ``oldest``.
        oldest: What that stands for.

    Raises:
        InputError: it is neither.
    """
    version = oldest if asked == OLDEST else asked
    if not _VERSION.fullmatch(version):
        raise InputError(
            f"--runtime {version} is not a version of onnxruntime. Give one, such as 1.17.0, or '{OLDEST}'."
        )
    return version


def check_in_runtime(
    bundle: Path,
    version: str,
    profile: Profile,
    progress: Callable[[str], None],
    *,
    key: PublicKey | None = None,
) -> CheckResult:
    """Verify a bundle's files, and its golden outputs on this machine's processor in one version of ONNX Runtime.

    If its files were changed, or its signature does not hold, nothing is run.

    Args:
        bundle: A folder that ``edgeopt build`` wrote.
        version: From ``choose_version``.
        profile: The settings to run with.
        progress: Called with a few words on the current step.
        key: Verifies the signature; None for no verification.

    Raises:
        DataError: the manifest is missing or has another schema.
    """
    manifest, name = read_manifest(bundle), f"onnxruntime {version}, here"
    findings = [*check_files(bundle, manifest), *check_signature(bundle, manifest, key)]
    if all(finding.status != "bad" for finding in findings) and manifest.recipe is not None:
        try:
            python = find_runtime(version, progress)
            device = LocalDevice(python)
            progress(f"golden inputs in onnxruntime {version}")
            target = RunTarget(device=device, profile=profile.on_host, kind="stand-in", allow_fallback=())
            findings += check_golden(bundle, manifest, target)
        except StepError as error:
            findings.append(CheckFinding(kind="golden", name="model.onnx", status="missed", text=error.reason))
        except DeviceError as error:
            return device_failed(bundle, manifest.target, name, error)
    return to_result(bundle, manifest.target, name, findings)


def find_runtime(version: str, progress: Callable[[str], None]) -> Path:
    """Return the Python program of an environment with one version of ``onnxruntime``; it is made if there is none.

    Args:
        version: Such as ``1.17.0``.
        progress: Told that packages are installed.

    Raises:
        DeviceError: the environment cannot be made, for example because that version has no package for this Python, or
            another version comes first in it.
    """
    folder = _root() / f"onnxruntime-{version}-python-{sys.version_info.major}.{sys.version_info.minor}"
    try:
        if not _is_ready(folder):
            progress(f"installing onnxruntime {version} in an environment of its own")
            _make(folder, version)
        _check_version(folder / _PYTHON, version)
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(
            f"no environment with onnxruntime {version} could be made in {folder}: {error}. It takes Python's venv and "
            "ensurepip (Debian: python3-venv)."
        ) from error
    return folder / _PYTHON


def _root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeopt" / "runtimes"


def _is_ready(folder: Path) -> bool:
    return (folder / _READY).is_file() and (folder / _PYTHON).exists()  # the Python that it points to may be gone


def _make(folder: Path, version: str) -> None:
    """Make an environment aside, and move it to its place once it is whole.

    Raises:
        DeviceError: pip cannot install the packages.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(".making-*"):
        if time.time() - left.stat().st_mtime > _OLD_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        venv.create(made, with_pip=True)
        _install(made, version)
        (made / _READY).touch()
        if not _is_ready(folder):  # another process may have made it meanwhile
            shutil.rmtree(folder, ignore_errors=True)
            made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _install(folder: Path, version: str) -> None:
    wanted = [f"onnxruntime=={version}"]
    if tuple(map(int, version.split(".")[:2])) < _FIRST_WITH_NUMPY_2:
        wanted.append("numpy<2")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:")
    done = subprocess.run(
        [folder / _PYTHON, "-m", "pip", "install", *quiet, *wanted],
        env={name: value for name, value in os.environ.items() if name not in _INHERITED},
        capture_output=True, text=True, check=False, timeout=_MAX_SECONDS,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or ["pip failed"]
        raise DeviceError(
            f"onnxruntime {version} cannot be installed for Python {sys.version_info.major}.{sys.version_info.minor} "
            f"({lines[-1].removeprefix('ERROR:').strip()}). Make an environment with a Python that has it, and give "
            "--device 'local:?python=PATH'."
        )


def _check_version(python: Path, version: str) -> None:
    """Check that workers will import the version that was asked for.

    Raises:
        DeviceError: another one comes first.
    """
    code = "import onnxruntime; print(onnxruntime.__version__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=_MAX_SECONDS)
    found = done.stdout.strip().split(".")
    wanted = version.split(".")
    if done.returncode or found[: len(wanted)] != wanted:
        what = f"onnxruntime {'.'.join(found)}" if not done.returncode else "no onnxruntime that can be imported"
        raise DeviceError(
            f"{python} finds {what} instead of {version}. Unset PYTHONPATH and PYTHONHOME, which come before an "
            "environment's own packages."
        )

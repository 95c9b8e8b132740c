"""Other versions of ONNX Runtime on this machine, each in an environment of its own.

A target names the oldest that has to run its files: that it does is seen by running them there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

from edgeopt.errors import DeviceError, InputError

OLDEST = "oldest"
"""In place of a version: the oldest that the target names."""
_VERSION = re.compile(r"\d+\.\d+(\.\d+)?")
_FIRST_WITH_NUMPY_2 = (1, 19)
_MAX_SECONDS = 900.0


def find_runtime(version: str, oldest: str, progress: Callable[[str], None]) -> Path:
    """Return the Python program of an environment with one version of ``onnxruntime``; it is made if there is none.

    Args:
        version: Such as ``1.17.0``, or ``oldest``.
        oldest: The oldest version that the target names.
        progress: Told that packages are installed.

    Raises:
        InputError: ``version`` is not a version.
        DeviceError: the environment cannot be made, for example because that version has no package for this Python.
    """
    version = oldest if version == OLDEST else version
    if not _VERSION.fullmatch(version):
        raise InputError(
            f"--runtime {version} is not a version of onnxruntime. Give one, such as 1.17.0, or '{OLDEST}'."
        )
    name = f"onnxruntime-{version}-python-{sys.version_info.major}.{sys.version_info.minor}"
    folder = _root() / name
    python = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")
    if not (folder / python).exists():
        progress(f"installing onnxruntime {version} in an environment of its own")
        try:
            _make(folder, python, version)
        except (OSError, subprocess.SubprocessError) as error:
            raise DeviceError(
                f"no environment with onnxruntime {version} could be made in {folder}: {error}"
            ) from error
    return folder / python


def _root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeopt" / "runtimes"


def _make(folder: Path, python: Path, version: str) -> None:
    """Make an environment aside, and move it to its place once it is whole.

    Raises:
        DeviceError: pip cannot install the packages.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as made:
        venv.create(made, with_pip=True)
        wanted = [f"onnxruntime=={version}"]
        if tuple(map(int, version.split(".")[:2])) < _FIRST_WITH_NUMPY_2:
            wanted.append("numpy<2")
        quiet = ("--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:")
        done = subprocess.run(
            [Path(made) / python, "-m", "pip", "install", *quiet, *wanted],
            capture_output=True, text=True, check=False, timeout=_MAX_SECONDS,
        )  # fmt: skip
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or ["pip failed"]
            raise DeviceError(
                f"onnxruntime {version} cannot be installed for Python {sys.version_info.major}."
                f"{sys.version_info.minor} ({lines[-1].removeprefix('ERROR:').strip()}). Make an environment with a "
                "Python that has it, and give --device 'local:?python=PATH'."
            )
        if not folder.exists():  # another process may have made it meanwhile
            shutil.copytree(made, folder, symlinks=True)

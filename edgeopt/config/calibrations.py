"""Where a target's calibration is kept: beside the user's own profile, or in the project's ``targets`` folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from edgeopt.config.profiles import find_profile, own_folder, shipped_folder
from edgeopt.errors import DataError, WorkspaceError
from edgeopt.records.calibration import Calibration
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.profile import Profile


def calibration_path(target: str) -> Path:
    """Return where a target's calibration belongs, whether it is there or not.

    Args:
        target: A name or a path, as on the command line.

    Raises:
        ConfigError: there is no such target.
    """
    profile = find_profile(target)
    folder = own_folder() if profile.parent == shipped_folder() else profile.parent
    return folder / f"{profile.stem}.calibration.json"


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file whole or not at all; an older one is replaced.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            stream.write(msgspec.json.format(to_json(calibration), indent=1) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it may never have been there
            part.unlink()
        raise WorkspaceError(f"{path} cannot be written: {error.strerror}.") from error


def read_calibration(path: Path) -> Calibration | None:
    """Return the calibration, or None where there is no such file.

    Raises:
        DataError: it is broken, or of another version of edgeopt.
    """
    try:
        return from_json(path.read_bytes(), Calibration)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise DataError(
            f"{path} is no calibration that this version reads: {error}. Remove it, or make it anew with `edgeopt "
            "targets calibrate`."
        ) from error


def why_not(calibration: Calibration, profile: Profile, host_id: str, onnxruntime: str) -> str | None:
    """Say why a calibration does not hold here; None where it does.

    Args:
        calibration: What was read.
        profile: The target as it is now.
        host_id: Of the machine that is to foretell.
        onnxruntime: Its version there.
    """
    known = calibration.host_environment.onnxruntime
    reasons = (
        (calibration.target == profile.name, f"it is of the target '{calibration.target}'"),
        (calibration.host.id == host_id, f"it was made on another host ({calibration.host.id}; this is {host_id})"),
        (known == onnxruntime, f"it was made with onnxruntime {known} here, and this is {onnxruntime}"),
        (calibration.runtime == profile.runtime, "providers, threads or other settings of the target have changed"),
    )
    return next((reason for holds, reason in reasons if not holds), None)

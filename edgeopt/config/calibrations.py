"""A target's calibration file: next to the user's own profile, or in the project's ``targets`` folder."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeopt.config.profiles import find_profile, own_folder, shipped_folder
from edgeopt.errors import DataError, WorkspaceError
from edgeopt.records.calibration import Calibration
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.profile import Profile
from edgeopt.store.files import write_whole


def calibration_path(target: str) -> Path:
    """Return the path of a target's calibration, whether the file exists or not.

    Args:
        target: A name or a path, as on the command line.

    Raises:
        ConfigError: there is no such target.
    """
    profile = find_profile(target)
    folder = own_folder() if profile.parent == shipped_folder() else profile.parent
    return folder / f"{profile.stem}.calibration.json"


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the whole file or nothing; an older one is replaced.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(to_json(calibration), indent=1) + b"\n", durable=True)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error.strerror}.") from error


def read_calibration(path: Path) -> Calibration | None:
    """Return the calibration, or None if there is no such file.

    Raises:
        DataError: it is broken, or written by another version of edgeopt.
    """
    try:
        return from_json(path.read_bytes(), Calibration)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise DataError(
            f"{path} is not a calibration that this version can read: {error}. Remove it, or make a new one with "
            "`edgeopt targets calibrate`."
        ) from error


def find_mismatch(calibration: Calibration, profile: Profile, host_id: str, onnxruntime: str) -> str | None:
    """Return why a calibration doesn't hold here, or None if it does.

    Args:
        calibration: As read from its file.
        profile: The target as it is now.
        host_id: Of the machine that predicts.
        onnxruntime: ONNX Runtime's version on that machine.
    """
    known = calibration.host_environment.onnxruntime
    reasons = (
        (calibration.target == profile.name, f"it is for the target '{calibration.target}'"),
        (calibration.host.id == host_id, f"it was made on another host ({calibration.host.id}; this is {host_id})"),
        (known == onnxruntime, f"it was made with onnxruntime {known}, and this is {onnxruntime}"),
        (calibration.runtime == profile.runtime, "providers, threads or other settings of the target have changed"),
    )
    return next((reason for holds, reason in reasons if not holds), None)

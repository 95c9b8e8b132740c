"""Target profiles: a name or a path goes in, a validated ``Profile`` comes out."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from edgeopt.config.limits import check_budget
from edgeopt.config.project import project_folder
from edgeopt.config.toml import read_toml, to_record
from edgeopt.errors import ConfigError, did_you_mean
from edgeopt.records.profile import Profile

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""Names are used in file names and on command lines."""


def shipped_folder() -> Path:
    """Return the folder of the targets that edgeopt ships: inside the wheel, or next to the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "targets"
    return inside if inside.is_dir() else package.parent / "targets"


def own_folder() -> Path:
    """Return the folder of the project's own targets, which may not exist."""
    return project_folder() / "targets"


def list_profiles() -> tuple[tuple[Profile, Path], ...]:
    """Load every profile that has a name, shipped ones first, each with its file.

    Raises:
        ConfigError: one of the files is broken.
    """
    shipped = _files(shipped_folder())
    own = [path for name, path in _files(own_folder()).items() if name not in shipped or _differ(path, shipped[name])]
    return tuple((read_profile(path), path) for path in (*shipped.values(), *own))


def load_profile(name_or_path: str) -> Profile:
    """Load a target by a shipped name, by the name of a file in ``./targets``, or by the path of a ``.toml``.

    Raises:
        ConfigError: there is no such target, or there are two with one name, or the file is broken.
    """
    return read_profile(find_profile(name_or_path))


def find_profile(name_or_path: str) -> Path:
    """Find the file of a target, as ``load_profile`` does.

    Raises:
        ConfigError: there is no such target, or there are two with one name.
    """
    if name_or_path.endswith(".toml") or os.sep in name_or_path:
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"there is no target file {path}. `edgeopt targets list` shows the known names.")
        return path
    shipped, own = _files(shipped_folder()), _files(own_folder())
    found = [files[name_or_path] for files in (shipped, own) if name_or_path in files]
    if len(found) == 2 and _differ(found[0], found[1]):
        raise ConfigError(
            f"'{name_or_path}' is a target that edgeopt ships, and a different one in {found[1]}. Rename yours, or "
            "give its path."
        )
    if not found:
        known = sorted({*shipped, *own})
        raise ConfigError(
            f"there is no target '{name_or_path}'{did_you_mean(name_or_path, known)}. Known: {', '.join(known)}. "
            "Make your own with `edgeopt targets new NAME`, or give the path of a .toml file."
        )
    return found[0]


def read_profile(path: Path) -> Profile:
    """Read and validate one profile's file.

    Raises:
        ConfigError: the file is broken, or a value is out of range.
    """
    profile = to_record(read_toml(path), Profile, path)
    _check(profile, path)
    return profile


def _files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}


def _differ(one: Path, other: Path) -> bool:
    """Tell whether two files differ; a checkout's own ``targets`` folder holds the shipped files."""
    return not one.samefile(other) and one.read_bytes() != other.read_bytes()


def _check(profile: Profile, path: Path) -> None:
    """Refuse values that have the right type but make no sense."""
    timing = profile.timing
    rules = (
        (profile.name == path.stem, f"name is '{profile.name}'; it has to be the file's name, '{path.stem}'"),
        (NAME_PATTERN.fullmatch(profile.name), f"name '{profile.name}' is not lower-case letters, digits, '-' and '_'"),
        (":" in profile.device, f"device '{profile.device}' is not a URI; this machine is 'local:'"),
        (profile.providers, "providers is empty; name at least one, such as 'CPUExecutionProvider'"),
        (len(set(profile.providers)) == len(profile.providers), "providers has one entry twice"),
        (
            set(profile.provider_libraries) <= set(profile.providers),
            f"provider_libraries names {', '.join(sorted(set(profile.provider_libraries) - set(profile.providers)))}, "
            "which providers lacks",
        ),
        (profile.threads >= 1, f"threads is {profile.threads}; it has to be 1 or more"),
        (
            all(core >= 0 for core in profile.affinity),
            f"affinity has core {min(profile.affinity, default=0)}; cores are numbered from 0",
        ),
        (len(set(profile.affinity)) == len(profile.affinity), "affinity has one core twice"),
        ("fp32" in profile.precisions, "precisions lacks 'fp32', which always stays a candidate"),
        (len(set(profile.precisions)) == len(profile.precisions), "precisions has one entry twice"),
        (profile.channel_step >= 1, f"channel_step is {profile.channel_step}; it has to be 1 or more (1: no rounding)"),
        (profile.max_opset >= 13, f"max_opset is {profile.max_opset}; the exporters write 13 or later"),
        (profile.max_ir >= 7, f"max_ir is {profile.max_ir}; opset 13 needs 7 or later"),
        (
            re.fullmatch(r"\d+\.\d+\.\d+", profile.min_onnxruntime),
            f"min_onnxruntime '{profile.min_onnxruntime}' is not a version such as '1.17.0'",
        ),
        (timing.processes >= 1, f"[timing] processes is {timing.processes}; it has to be 1 or more"),
        (timing.warmup_runs >= 0, f"[timing] warmup_runs is {timing.warmup_runs}; it has to be 0 or more"),
        (timing.min_runs >= 2, f"[timing] min_runs is {timing.min_runs}; a spread needs 2 or more"),
        (
            0 <= timing.warmup_seconds < math.inf,
            f"[timing] warmup_seconds is {timing.warmup_seconds}; it has to be 0 or more, and finite",
        ),
        (
            0 <= timing.min_seconds < math.inf,
            f"[timing] min_seconds is {timing.min_seconds}; it has to be 0 or more, and finite",
        ),
        (timing.min_seconds <= timing.max_seconds < math.inf, "[timing] max_seconds is below min_seconds, or infinite"),
    )
    for holds, problem in rules:
        if not holds:
            raise ConfigError(f"{path}: {problem}.")
    check_budget(profile.limits, f"{path}, [limits]")

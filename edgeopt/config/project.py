"""``edgeopt.toml``: a project's task, target and limits, found in the current folder or the nearest one above."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeopt.config.limits import LimitOptions, check_options
from edgeopt.config.toml import read_toml, to_record
from edgeopt.records.base import Record

FILE_NAME = "edgeopt.toml"


class TargetOptions(Record, frozen=True, kw_only=True):
    """``[targets.NAME]``: what differs for one of several targets."""

    device: str | None = None
    """URI of the device that stands on the desk; None: the target's own."""
    limits: LimitOptions | None = None
    """They replace single limits of ``[limits]``."""


class Project(Record, frozen=True, kw_only=True):
    """The content of ``edgeopt.toml``; empty for keys that it lacks. Paths are relative to its folder."""

    task: str | None = None
    """As on the command line: a ready task, ``module:name``, ``file.py:name`` or ``model.onnx``."""
    target: str | tuple[str, ...] | None = None
    """The name of a profile, or the path of its file; several for a file for each."""
    limits: LimitOptions | None = None
    keep: tuple[str, ...] = ()
    """Globs of parameters and modules that no channel is cut from."""
    min_widths: dict[str, int] = msgspec.field(default_factory=dict)
    """Glob to the least number of output channels."""
    drop_unseen_rows: bool = False
    """Whether embedding rows that no training sample reads may go."""
    unknown_ids: dict[str, int] = msgspec.field(default_factory=dict)
    """Input to the id whose row all other ids read then."""
    targets: dict[str, TargetOptions] = msgspec.field(default_factory=dict)
    """By the name of the profile."""

    @property
    def target_names(self) -> tuple[str, ...]:
        """The targets, in order."""
        return (self.target,) if isinstance(self.target, str) else self.target or ()

    def limits_of(self, target: str) -> LimitOptions | None:
        """Return the limits of a target: its own, and those of ``[limits]`` that it does not replace."""
        own = self.targets[target].limits if target in self.targets else None
        if own is None or self.limits is None:
            return own or self.limits
        given = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
        return msgspec.structs.replace(self.limits, **given)


def project_folder(start: Path | None = None) -> Path:
    """Return the nearest folder with an ``edgeopt.toml``, from ``start`` upward; otherwise ``start`` itself."""
    start = (start or Path.cwd()).absolute()
    return next((folder for folder in (start, *start.parents) if (folder / FILE_NAME).is_file()), start)


def load_project(start: Path | None = None) -> Project:
    """Read the project's file; without one, everything is None.

    Relative paths in ``task`` and ``target`` become absolute, so a command does the same from any folder below.

    Args:
        start: The folder to look in first; None is the current folder.

    Raises:
        ConfigError: the file is broken, has unknown keys, or holds a limit that makes no sense.
    """
    folder = project_folder(start)
    path = folder / FILE_NAME
    if not path.is_file():
        return Project()
    project = to_record(read_toml(path), Project, path)
    if project.limits is not None:
        check_options(project.limits, f"{path}, [limits]: ", any_unit=True)  # the unit is known later
    for name, options in project.targets.items():
        if options.limits is not None:
            check_options(options.limits, f"{path}, [targets.{name}.limits]: ", any_unit=True)
    task = None if project.task is None else _from_folder(project.task, folder)
    if project.target is None or isinstance(project.target, str):
        target: str | tuple[str, ...] | None = project.target and _from_folder(project.target, folder)
    else:
        target = tuple(_from_folder(name, folder) for name in project.target)
    return msgspec.structs.replace(project, task=task, target=target)


def _from_folder(word: str, folder: Path) -> str:
    """Make a file path in ``word`` absolute, relative to the project's folder; return every other word unchanged."""
    file, colon, name = word.rpartition(":") if word.partition(":")[0].endswith(".py") else (word, "", "")
    return f"{folder / file}{colon}{name}" if file.endswith((".py", ".onnx", ".toml")) else word

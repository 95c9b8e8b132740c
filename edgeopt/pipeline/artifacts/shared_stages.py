"""Files of graph steps that several variants of a network begin with: made and checked once for all of them.

They lie in ``stages/shared`` of the workspace until a round of the search ends. Files above ``MAX_BYTES`` are made
again instead: a network has about ten variants of four stages each.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgeopt.model_files.layout import measure_bytes
from edgeopt.pipeline.artifacts.networks import ExportedFile, StoredNetwork
from edgeopt.pipeline.context import Build
from edgeopt.records.base import Record
from edgeopt.records.codec import digest, from_json, to_json
from edgeopt.records.recipe import GraphStep
from edgeopt.records.trial import Parity
from edgeopt.store.files import write_whole

MAX_BYTES = 64_000_000
_locks: dict[Path, threading.Lock] = {}
"""Of files that are being made, or were: variants are made by several threads."""


class MadeStage(Record, frozen=True, kw_only=True):
    """What is known of a file after one more step."""

    notes: tuple[str, ...]
    parity: Parity | None
    """None if the stage is not checked."""
    names: dict[str, str] = msgspec.field(default_factory=dict)
    """What new names of inner values stand for."""


class SharedStages:
    """The stages of one exported file.

    Args:
        build: The build.
        network: The network that was exported.
        exported: The exported file.
    """

    def __init__(self, build: Build, network: StoredNetwork, exported: ExportedFile) -> None:
        small = measure_bytes(build.workspace.artifact(exported.sha256)) <= MAX_BYTES
        name = digest((exported.sha256, network.key))
        self.folder = _root(build) / name if small else None

    def make(
        self,
        steps: tuple[GraphStep, ...],
        calibration: Path | None,
        own: Path,
        make: Callable[[Path], MadeStage],
    ) -> tuple[Path, MadeStage]:
        """Return the file after some steps, and what is known of it: made before, or made now.

        Args:
            steps: All steps that lead to the file.
            calibration: The samples that a step reads.
            own: Where to make it if it is not shared.
            make: Makes it at a path, and checks it.
        """
        if self.folder is None:
            return own, make(own)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{digest((steps, calibration and calibration.name))}.onnx"
        known = path.with_suffix(".json")
        with _locks.setdefault(path, threading.Lock()):
            if known.exists():
                return path, from_json(known.read_bytes(), MadeStage)
            found = make(path)
            write_whole(known, to_json(found))
            return path, found


@contextmanager
def without_old_stages(build: Build) -> Iterator[None]:
    """Remove all shared files before and after a block: a killed build, of any version, may have left some."""
    forget_stages(build)
    try:
        yield
    finally:
        forget_stages(build)


def forget_stages(build: Build) -> None:
    """Remove all shared files."""
    shutil.rmtree(_root(build), ignore_errors=True)
    _locks.clear()


def _root(build: Build) -> Path:
    return build.workspace.folder("stages") / "shared"

"""The workspace folder: the ledger, files named by their content or their key, and the lock.

ledger.sqlite            every finished part and trial
artifacts/SHA256.onnx    every file that was made; the weights of those above 2 GiB are in artifacts/SHA256.data
networks/KEY.safetensors pruned and trained networks
checkpoints/             trainings under way
teacher/                 the teacher's outputs for the training stream
latency/KEY.json         times of layers on one device, for every task
tables/                  group tables, low-rank tables and fake-quantization sites of networks
stages/                  files that are being made, and scratch folders
log.txt                  the debug log of the last builds
stop                     asks the running build to end (`edgeopt stop`)
arrays/                  evaluation inputs, calibration inputs, outputs, scores of single samples
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.errors import WorkspaceError
from edgeopt.model_files.layout import has_all_parts, hash_of_file, model_parts, move_model
from edgeopt.store.files import PARTIAL_MARK

FOLDERS = ("artifacts", "networks", "checkpoints", "teacher", "arrays", "tables", "stages", "latency")


class Workspace:
    """The folder in which a build keeps its work. ``open`` makes the folders and takes the lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger_file = root / "ledger.sqlite"
        self.log_file = root / "log.txt"
        self.stop_file = root / "stop"
        """While it exists, the build that runs here trains no more, and ends with the best file so far."""

    def folder(self, name: str) -> Path:
        """Return one of the folders."""
        return self.root / name

    def artifact(self, sha256: str) -> Path:
        """Return the path of the file with that hash."""
        return self.root / "artifacts" / f"{sha256}.onnx"

    def network(self, key: str) -> Path:
        """Return the path of a network's weights."""
        return self.root / "networks" / f"{key}.safetensors"

    def has_artifact(self, sha256: str) -> bool:
        """Tell whether the file with that hash is there, with its weights if they are in another one."""
        return has_all_parts(self.artifact(sha256))

    def keep_artifact(self, path: Path) -> str:
        """Move a finished ``.onnx`` in under its hash, and its weights, and return the hash."""
        sha256 = hash_of_file(path)
        for part in model_parts(path):
            with part.open("rb") as handle:
                os.fsync(handle.fileno())
        move_model(path, self.artifact(sha256))
        return sha256

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give an empty folder for the length of a block, even if a killed build left files under that name."""
        folder = self.folder("stages") / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def open(self) -> Iterator[Workspace]:
        """Make the folders and hold the lock for a block.

        Raises:
            WorkspaceError: it cannot be written, or another build holds it.
        """
        try:
            for name in FOLDERS:
                self.folder(name).mkdir(parents=True, exist_ok=True)
            handle = (self.root / "lock").open("a+")
        except OSError as error:
            raise WorkspaceError(
                f"the workspace {self.root} cannot be written: {error.strerror or error}. "
                "Choose another one with --workspace DIR."
            ) from error
        with handle:
            lock(handle.fileno(), self.root)
            handle.seek(0)
            handle.truncate()
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            self._remove_partial_files()
            self.stop_file.unlink(missing_ok=True)
            yield self

    def running_build(self) -> int | None:
        """Return the number of the process that builds here; None if none does, or if there is no workspace."""
        try:
            handle = (self.root / "lock").open("a+")
        except OSError:
            return None
        with handle:
            try:
                lock(handle.fileno(), self.root)
            except WorkspaceError:
                return int(os.pread(handle.fileno(), 32, 0).decode().strip() or 0)
        return None

    def _remove_partial_files(self) -> None:
        """Remove what was being written when a build was killed."""
        for name in FOLDERS:
            for path in list(self.folder(name).rglob(f"*{PARTIAL_MARK}*")):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def lock(descriptor: int, root: Path) -> None:
    """Lock an open file until it is closed or the process ends.

    Raises:
        WorkspaceError: another process holds it.
    """
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise WorkspaceError(
            f"another edgeopt build (process {holder}) is using {root}. Wait until it ends, or choose another folder "
            "with --workspace DIR."
        ) from error

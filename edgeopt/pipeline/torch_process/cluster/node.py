"""A node's side of a training on a cluster: an actor with a torch process of its own, and a folder for a while.

The torch process is the one of a local training, so a crash in a library ends it and not the actor. It ends when the
actor does.
"""

from __future__ import annotations

import fcntl
import os
import queue
import shutil
import tempfile
import threading
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

import msgspec

from edgeopt.errors import ConfigError, EdgeoptError, StepError, TaskError
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.cluster import files
from edgeopt.pipeline.torch_process.cluster.code import hash_code
from edgeopt.pipeline.torch_process.cluster.settings import NodeSettings
from edgeopt.pipeline.torch_process.process import TorchProcess
from edgeopt.records.codec import from_json, to_json
from edgeopt.tasks.given.onnx_trainable import TRAINING_SUFFIX

_PREFIX = "edgeopt-node-"
_LOCK = "lock"


class NodeTraining:
    """Runs the trainings of one bridge, one after the other; Ray makes an actor of it.

    Args:
        settings: ``NodeSettings`` as JSON.
    """

    def __init__(self, settings: bytes) -> None:
        self.settings = from_json(settings, NodeSettings)
        _remove_left_folders()
        self.folder, self.lock = _own_folder()
        self.stop_file = self.folder / "stop"
        self.sees_workspace = Path(self.settings.mark).is_file()
        self.root = Path(self.settings.mark).parents[1] if self.sees_workspace else self.folder / "workspace"
        self.process: TorchProcess | None = None
        self.job: protocol.TrainJob | None = None
        self.answers: queue.Queue[protocol.TorchAnswer] = queue.Queue()

    def needs_files(self) -> bool:
        """Tell whether files have to travel, because the workspace isn't here."""
        return not self.sees_workspace

    def begin(self, job: bytes, contents: files.Files) -> None:
        """Begin a training; ``next`` returns what comes of it.

        Args:
            job: A ``TrainJob`` as JSON, with paths in the build's workspace.
            contents: Of its files, if they have to travel.
        """
        files.write_files(contents, self.root)
        self.stop_file.unlink(missing_ok=True)
        here = files.moved(from_json(job, protocol.TrainJob), Path(self.settings.workspace), self.root)
        written = [here.checkpoint, here.teacher, here.out]
        for path in written if here.int8 is None else [*written, here.int8.expected]:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.job = msgspec.structs.replace(here, stop_file=str(self.stop_file), deadline=None)
        threading.Thread(target=self._run, args=(self.job,), daemon=True).start()

    def _run(self, job: protocol.TrainJob) -> None:
        try:
            answer = run_step("train", self._train, job)
        except EdgeoptError as error:
            stage, reason, trace = "train", str(error), None
            if isinstance(error, StepError):
                stage, reason, trace = error.stage, error.reason, error.trace
            answer = protocol.JobFailed(stage=stage, reason=reason, trace=trace, kind="crashed")
        self.answers.put(answer)

    def _train(self, job: protocol.TrainJob) -> protocol.TorchAnswer:
        if self.process is None or self.process.process.poll() is not None:
            self.process = TorchProcess(self._prepare_task())
        return self.process.do(job, self.answers.put)

    def next(self) -> tuple[bytes, files.Files]:
        """Wait for the next answer; return it as JSON, with the files that it speaks of, if they have to travel."""
        answer = self.answers.get()
        assert self.job is not None
        if self.sees_workspace:
            return to_json(answer), {}
        is_done = isinstance(answer, protocol.TrainDone)
        paths = files.output_files(self.job) if is_done else files.checkpoints(self.job)
        return to_json(answer), files.read_files(paths, self.root)

    def stop(self) -> None:
        """End the training as the end of the build's time does; its last whole epoch is kept."""
        self.stop_file.touch()

    def close(self) -> None:
        """End the torch process, and remove this node's files."""
        if self.process is not None:
            self.process.close()
        self.lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prepare_task(self) -> str:
        """Return the task as it is named here: at the build's own path, or in the copy that Ray made the folder of."""
        task, code = self.settings.task, self.settings.code
        is_here = sees_code(self.settings)
        self._set_variables(is_here)
        if task.endswith(TRAINING_SUFFIX):
            return str(self.root / Path(task).relative_to(self.settings.workspace))
        if code is None:
            return task
        source, _, name = task.rpartition(":")
        if not is_here:
            self._check_copy()
            return f"{Path(code).name}:{name}" if source.endswith(".py") else task
        if Path(self.settings.folder).is_dir():
            os.chdir(self.settings.folder)
        return f"{code}:{name}" if source.endswith(".py") else task

    def _set_variables(self, is_here: bool) -> None:
        """Set the variables of the build; no ``PYTHONPATH`` for a copy: it may name a folder with other code."""
        for variable, value in self.settings.environment.items():
            if variable != "PYTHONPATH":
                os.environ[variable] = value
            elif is_here:
                before = os.environ.get(variable)
                os.environ[variable] = os.pathsep.join([value, before] if before else [value])

    def _check_copy(self) -> None:
        """Check that the code was sent: at the beginning of the build this node may have had the same."""
        if not self.settings.code_is_sent:
            raise TaskError(
                f"the Python files in {self.settings.code_root} on this node of the cluster are not those of the "
                "machine that builds; they were when the build began. The same command compares them again, and sends "
                "them if they differ."
            )


def sees_code(settings: NodeSettings) -> bool:
    """Tell whether the task's code is here under the same path: all Python files that would travel are the same."""
    if settings.code is None or settings.code_root is None:
        return True
    try:
        return Path(settings.code).is_file() and hash_code(Path(settings.code_root)) == settings.code_sha256
    except ConfigError:
        return False


def report_node(settings: bytes) -> tuple[bool, dict[str, str]]:
    """Return whether the task's code is on this node, and the versions of what a training needs."""
    return sees_code(from_json(settings, NodeSettings)), training_versions()


def training_versions() -> dict[str, str]:
    """Return the versions that have to be the same everywhere; a build of PyTorch for GPUs is of the same version."""
    found = {}
    for name in ("edgeopt", "torch"):
        with suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]
    return found


def _own_folder() -> tuple[Path, IO[str]]:
    """Make a folder, and return it with the lock that says that it is in use."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():  # otherwise another actor took it for a left one just now
            return folder, lock
        lock.close()


def _remove_left_folders() -> None:
    """Remove the folders of actors that were killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue

"""A process that passes trainings on to a Ray cluster.

    python -m edgeopt.pipeline.torch_process.cluster.bridge SETTINGS

To its parent it is a torch process: jobs come on stdin, answers go to stdout. Each bridge has one training at a time,
in an actor on some node (``node``). What Ray prints stays here, and if this process ends, Ray ends the actor. An actor
that is lost is replaced, and goes on from the last epoch.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from edgeopt.errors import ConfigError, CrashError, EdgeoptError
from edgeopt.pipeline.boundary import run_step
from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.cluster import files
from edgeopt.pipeline.torch_process.cluster.code import code_of, copy_code, hash_code
from edgeopt.pipeline.torch_process.cluster.connect import connect_to_ray
from edgeopt.pipeline.torch_process.cluster.node import NodeTraining, training_versions
from edgeopt.pipeline.torch_process.cluster.settings import PASSED_VARIABLES, BridgeSettings, NodeSettings
from edgeopt.pipeline.torch_process.serving import Answer, serve_parent
from edgeopt.records.codec import from_json, to_json

MAX_RESTARTS = 2
"""Of a training whose worker was lost."""
_IDLE_SECONDS = 10.0
"""An actor without a job leaves its cores or GPU to others after that time."""
_POLL_SECONDS = 0.5
_DESCRIBE_SECONDS = 120.0
"""For the nodes to answer; the first answer of a node starts a process there."""


class _Held(NamedTuple):
    """An actor, and what it asked the cluster for."""

    actor: Any
    resources: dict[str, int]


class Bridge:
    """Runs jobs on a cluster.

    Args:
        settings: The cluster and the build.
        answer: Sends the progress of a training to the parent.
    """

    def __init__(self, settings: BridgeSettings, answer: Answer) -> None:
        self.settings = settings
        self.answer = answer
        self.workspace = Path(settings.workspace)
        self.code = code_of(settings.task)
        self.held: _Held | None = None
        self._ray: Any = None

    def node_settings(self) -> NodeSettings:
        """Return what a node has to know now: the user may change files while a build runs.

        Raises:
            ConfigError: a file of the task's code cannot be read.
        """
        return NodeSettings(
            task=self.settings.task,
            code=None if self.code is None else str(self.code.file),
            code_root=None if self.code is None else str(self.code.root),
            code_sha256=None if self.code is None else hash_code(self.code.root),
            code_is_sent=self.settings.sends_code,
            folder=str(Path.cwd()),
            workspace=self.settings.workspace,
            mark=self.settings.mark,
            environment={name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ},
        )

    @property
    def ray(self) -> Any:
        """The module, connected to the cluster.

        Raises:
            ConfigError: it cannot be connected.
        """
        if self._ray is None:
            with tempfile.TemporaryDirectory(prefix="edgeopt-code-") as folder:
                environment = {}
                if self.settings.sends_code and self.code is not None:
                    copy_code(self.code.root, Path(folder))
                    environment = {"working_dir": folder}
                self._ray = connect_to_ray(self.settings.address, environment)
        return self._ray

    # -- what the cluster has ----------------------------------------------------------------------------------------

    def describe(self) -> protocol.RoomDone:
        """Return what the nodes have, and check that they can run trainings.

        Raises:
            ConfigError: the cluster cannot be used.
        """
        ray = self.ray
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not nodes:
            raise ConfigError(f"--ray {self.settings.address}: no node of the cluster has a core to train on.")
        sees_code = [self._describe(node) for node in nodes]
        return protocol.RoomDone(
            cores=tuple(int(node["Resources"]["CPU"]) for node in nodes),
            gpus=tuple(int(node["Resources"].get("GPU", 0)) for node in nodes),
            sees_code=all(sees_code),
        )

    def _describe(self, node: dict[str, Any]) -> bool:
        """Check the versions on a node, and return whether it has the task's own code."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = self.ray.remote(_look_at_node).options(num_cpus=0, scheduling_strategy=place, max_retries=0)
        title = f"--ray {self.settings.address}: node {node['NodeManagerAddress']}"
        try:
            found = self.ray.get(task.remote(to_json(self.node_settings())), timeout=_DESCRIBE_SECONDS)
        except self.ray.exceptions.RayError as error:
            raise ConfigError(f"{title} cannot run a task: {_first_line(error)}") from error
        if isinstance(found, str):
            raise ConfigError(
                f"{title} cannot load edgeopt ({found}). Install it on every node, as here: pip install 'edgeopt[ray]'."
            )
        sees_code, versions = found
        for name, own in training_versions().items():
            if versions.get(name) != own:
                raise ConfigError(
                    f"{title} has {name} {versions.get(name, 'not installed')}, and this machine has {own}. Install "
                    "the same version everywhere: networks are only comparable if the same code trains them."
                )
        return bool(sees_code)

    # -- trainings ---------------------------------------------------------------------------------------------------

    def train(self, job: protocol.TrainJob) -> protocol.TorchAnswer:
        """Run a training; if its worker is lost, again from its last epoch, at most ``MAX_RESTARTS`` times."""
        lost: list[str] = []
        exceptions = self.ray.exceptions
        while len(lost) <= MAX_RESTARTS:
            try:
                answer = self._train_once(job)
            except exceptions.RayTaskError:
                raise
            except exceptions.RayError as error:
                self.release(kill=True)
                lost.append(_first_line(error))
                continue
            if lost and isinstance(answer, protocol.TrainDone):
                note = f"went on from its last epoch after the cluster lost its worker: {lost[-1]}"
                answer = msgspec.structs.replace(answer, notes=(*answer.notes, note))
            return answer
        reason = (
            f"the cluster lost the training's worker {len(lost)} times, last: {lost[-1]} The same command tries again."
        )
        return protocol.JobFailed(stage=protocol.CLUSTER_STAGE, reason=reason, trace="\n".join(lost), kind="crashed")

    def _train_once(self, job: protocol.TrainJob) -> protocol.TorchAnswer:
        actor = self._actor_for(job)
        needs_files = self._wait(actor.needs_files.remote(), job.is_over)
        if needs_files is None:
            self.release(kill=True)
            reason = "the time was over before the cluster had room for this training; with more time it begins."
            return protocol.JobFailed(stage="distill", reason=reason, trace=None, kind="unfinished")
        contents: files.Files = {}
        if needs_files:
            contents = files.read_files(files.input_files(job, self.settings.task), self.workspace)
        self.ray.get(actor.begin.remote(to_json(job), contents))
        while True:
            text, changed = self._next(actor, job)
            files.write_files(changed, self.workspace)
            answer: protocol.TorchAnswer = msgspec.json.decode(text, type=protocol.TorchAnswer)
            if not isinstance(answer, protocol.EpochProgress):
                return self._ended(job, answer, needs_files)
            self.answer(answer)

    def _ended(self, job: protocol.TrainJob, answer: protocol.TorchAnswer, needs_files: bool) -> protocol.TorchAnswer:
        """Return the last answer of a training, once its files are in the workspace."""
        if isinstance(answer, protocol.TrainDone) and answer.ended_after is None:
            for path in files.checkpoints(job):
                path.unlink()
        if isinstance(answer, protocol.JobFailed) and answer.kind == "crashed":
            self.release()
        if isinstance(answer, protocol.JobFailed) and answer.kind == "user" and needs_files:
            hint = "This was on a node of the cluster, which needs the task's data under the same path as here."
            return msgspec.structs.replace(answer, reason=f"{answer.reason} {hint}")
        return answer

    def _next(self, actor: Any, job: protocol.TrainJob) -> tuple[bytes, files.Files]:
        """Return the next answer of a training with its files; if the time is over meanwhile, let it stop."""
        ref = actor.next.remote()
        found = self._wait(ref, job.is_over)
        if found is None:
            actor.stop.remote()
            found = self._wait(ref, lambda: False)
        assert found is not None
        text, changed = found
        return text, changed

    def _wait(self, ref: Any, is_over: Callable[[], bool]) -> Any:
        """Return a result of the cluster; None if ``is_over`` is true before it comes."""
        while not is_over():
            if self.ray.wait([ref], timeout=_POLL_SECONDS)[0]:
                return self.ray.get(ref)
        return None

    def _actor_for(self, job: protocol.TrainJob) -> Any:
        """Return an actor with what the job needs: the one of the last job, or a new one, as soon as there is room."""
        resources = {"num_cpus": 1, "num_gpus": 1} if self.settings.gpu else {"num_cpus": job.threads, "num_gpus": 0}
        if self.held is None or self.held.resources != resources:
            self.release()
            made = self.ray.remote(NodeTraining).options(max_concurrency=2, **resources)
            self.held = _Held(made.remote(to_json(self.node_settings())), resources)
        return self.held.actor

    def release(self, kill: bool = False) -> None:
        """Give the actor back to the cluster.

        Args:
            kill: Whether it may no longer answer.
        """
        held, self.held = self.held, None
        if held is None:
            return
        if not kill:
            self.ray.wait([held.actor.close.remote()], timeout=_IDLE_SECONDS)
        self.ray.kill(held.actor)

    def run(self, job: protocol.BridgeJob) -> protocol.TorchAnswer:
        """Do one job; an error becomes an answer."""
        try:
            match job:
                case protocol.RoomJob():
                    return run_step(protocol.CLUSTER_STAGE, self.describe)
                case protocol.TrainJob():
                    return run_step(protocol.CLUSTER_STAGE, self.train, job)
        except EdgeoptError as error:
            stage = protocol.CLUSTER_STAGE
            if isinstance(error, CrashError):
                return protocol.JobFailed(stage=stage, reason=error.reason, trace=error.trace, kind="crashed")
            kind: Literal["user", "crashed"] = "user" if isinstance(job, protocol.RoomJob) else "crashed"
            return protocol.JobFailed(stage=stage, reason=str(error), trace=None, kind=kind)


def _look_at_node(settings: bytes) -> Any:
    """Run ``report_node`` on a node; return why if edgeopt isn't there. Ray sends this function by value."""
    try:
        from edgeopt.pipeline.torch_process.cluster.node import report_node
    except ImportError as error:
        return str(error)
    return report_node(settings)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def main() -> None:
    """Serve jobs until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = from_json(sys.argv[1].encode(), BridgeSettings)
    lines, answer = serve_parent()
    decoder: msgspec.json.Decoder[protocol.BridgeJob] = msgspec.json.Decoder(protocol.BridgeJob)
    bridge = Bridge(settings, answer)
    while True:
        try:
            line = lines.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            bridge.release()
            continue
        answer(bridge.run(decoder.decode(line)))


if __name__ == "__main__":
    main()

"""Open a task as a build does, and make and time pruned float32 files of its network, for other benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from benchmarks.predictor import export_pruned, finish_file
from edgeopt.bench.compare import ComparisonTurns, compare
from edgeopt.bench.requests import file_sha256
from edgeopt.config.profiles import load_profile
from edgeopt.latency.predictor import Predictor
from edgeopt.pipeline.artifacts.latency_table import latency_table
from edgeopt.pipeline.artifacts.networks import group_table_of
from edgeopt.pipeline.build import BuildRequest, open_build, start
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import importance_of
from edgeopt.records.codec import digest
from edgeopt.records.latency import NoLatencyTable
from edgeopt.records.measurement import Comparison
from edgeopt.statistics import LOOK_PAIRS, comparison_ratio
from edgeopt.store.keys import Key
from edgeopt.store.workspace import Workspace
from edgeopt.task import CheckedTask

QUICK_TURNS = ComparisonTurns(pairs=6, pair_seconds=0.4)
FULL_TURNS = ComparisonTurns(pairs=LOOK_PAIRS[-1], pair_seconds=0.6)

Widths = dict[str, int]


class EpochSize(NamedTuple):
    """An epoch of a task."""

    samples: int
    batches: int


def measure_epoch(build: Build) -> EpochSize:
    """Return the size of the first epoch of a build's task."""
    task = build.data.task
    assert isinstance(task, CheckedTask), "a given file has no epochs of its own"
    counts = [task.axes.count(inputs) for inputs, _ in task.train_epoch(0)]
    return EpochSize(sum(counts), len(counts))


@contextmanager
def open_task(task: str, root: Path, workers: int | None, epochs: int | None) -> Iterator[Build]:
    """Open a task as a build does."""
    request = BuildRequest(
        task=task, data=None, profile=load_profile("phone"), devices=("local:",), out=str(root / "out"),
        workspace=str(root), allow_fallback=(), workers=workers, time_limit_seconds=None, quick=False,
        command=(),
    )  # fmt: skip
    with (
        Workspace(root).open() as workspace,
        open_build(request, workspace, lambda *_: request.profile.limits, lambda *_: None) as build,
    ):
        effort = build.effort if epochs is None else msgspec.structs.replace(build.effort, epochs=epochs)
        yield dataclasses.replace(build, effort=effort)


class PrunedFiles:
    """One network: its groups, its latency table, and its files at any widths, in float32.

    The files are for timing: their channels are not chosen by importance.
    """

    def __init__(self, build: Build, folder: Path) -> None:
        self.build = build
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.runner = start(build).runner
        self.groups, _ = group_table_of(build, self.runner.original, importance_of(build))
        times = latency_table(build, self.groups, self.runner.exported, "fp32")
        if isinstance(times, NoLatencyTable):
            raise click.ClickException(f"the network has no latency table: {times.reason}")
        self.predictor = Predictor(times)
        self.parent = self._finish(build.workspace.artifact(self.runner.exported.sha256), "parent")

    @property
    def step(self) -> int:
        """Widths are multiples of it, or the full width."""
        return self.build.profile.channel_step

    def _finish(self, source: Path, name: str) -> Path:
        """Apply a candidate's graph steps to an exported file."""
        return finish_file(self.build, source, self.folder / f"{name}.onnx", "fp32")

    def make_file(self, widths: Widths) -> Path:
        """Return the file at these widths; it is made once."""
        name = digest(widths)
        target = self.folder / f"{name}.onnx"
        if not target.exists():
            [source] = export_pruned(self.build, self.runner.exported, [widths], self.folder)
            self._finish(source, name)
        return target

    def compare(self, file: Path, against: Path, turns: ComparisonTurns, seed: int = 0) -> Comparison:
        """Return the interleaved A/B of two files; the workspace keeps it if the benchmark is interrupted."""
        build = self.build
        key = Key(
            "comparison",
            digest(
                (
                    "benchmark",
                    file_sha256(file, "compare"),
                    file_sha256(against, "compare"),
                    turns,
                    seed,
                    build.device_info.id,
                )
            ),
        )
        return build.ledger.remember(
            key,
            Comparison,
            lambda: compare(file, against, build.run_target, seed=seed, turns=turns),
        )

    def estimate_ratio(self, file: Path, against: Path) -> float:
        """Return a quick estimate of a file's latency over another's."""
        return comparison_ratio(self.compare(file, against, QUICK_TURNS)).value

"""A task's network and its pruned files in float32, timed: what ``allocation.py`` compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec

from benchmarks.predictor import exported_at, finished
from edgeopt.bench.compare import ComparisonTurns, compare
from edgeopt.bench.requests import file_sha256
from edgeopt.config.profiles import load_profile
from edgeopt.latency.predictor import Predictor
from edgeopt.pipeline.artifacts.latency_table import latency_table
from edgeopt.pipeline.artifacts.networks import group_table_of
from edgeopt.pipeline.build import BuildRequest, open_build, start
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.search.candidate import importance_of
from edgeopt.pipeline.search.driver import Search
from edgeopt.records.codec import digest
from edgeopt.records.latency import NoLatencyTable
from edgeopt.records.measurement import Comparison
from edgeopt.statistics import LOOKS, comparison_ratio
from edgeopt.store.workspace import Workspace

QUICK_TURNS = ComparisonTurns(pairs=6, pair_seconds=0.4)
SURE_TURNS = ComparisonTurns(pairs=LOOKS[-1], pair_seconds=0.6)

Widths = dict[str, int]


@contextmanager
def opened_task(task: str, root: Path, workers: int | None, epochs: int | None) -> Iterator[Build]:
    """Open a task as a build does."""
    asked = BuildRequest(
        task=task, data=None, profile=load_profile("phone"), device="local:", out=str(root / "out"),
        workspace=str(root), allow_fallback=(), workers=workers, time_limit_seconds=None, quick=False, more=False,
        command=(),
    )  # fmt: skip
    with (
        Workspace(root).open() as workspace,
        open_build(asked, workspace, lambda _: asked.profile.limits, lambda *_: None) as build,
    ):
        effort = build.effort if epochs is None else msgspec.structs.replace(build.effort, epochs=epochs)
        yield dataclasses.replace(build, effort=effort)


class PrunedFiles:
    """One network: its groups, its latency table, and its pruned forms in float32, with whichever channels."""

    def __init__(self, build: Build, folder: Path) -> None:
        self.build = build
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.search: Search = start(build)
        self.groups, _ = group_table_of(build, self.search.original, importance_of(build))
        times = latency_table(build, self.groups, self.search.exported, "fp32")
        if isinstance(times, NoLatencyTable):
            raise click.ClickException(f"there is no latency table: {times.reason}")
        self.predictor = Predictor(times)
        self.parent = self.as_shipped(build.workspace.artifact(self.search.exported.sha256), "parent")

    @property
    def step(self) -> int:
        """Widths are multiples of it."""
        return self.build.profile.channel_step

    def as_shipped(self, source: Path, name: str) -> Path:
        """Take an exported file through a candidate's graph steps."""
        return finished(self.build, source, self.folder / f"{name}.onnx", "fp32")

    def file(self, widths: Widths) -> Path:
        """Return the file at these widths, for its latency."""
        name = digest(widths)
        target = self.folder / f"{name}.onnx"
        if not target.exists():
            [source] = exported_at(self.build, self.search.exported, [widths], self.folder)
            self.as_shipped(source, name)
        return target

    def compared(self, file: Path, against: Path, turns: ComparisonTurns, seed: int = 0) -> Comparison:
        """Return the interleaved A/B of two files, kept in the workspace: an interrupted benchmark goes on."""
        build = self.build
        key = digest(
            ("benchmark", file_sha256(file, "compare"), file_sha256(against, "compare"), turns, seed, build.device.id)
        )
        found = build.ledger.get("comparison", key, Comparison)
        if found is None:
            inputs = build.data.timing_inputs(1)
            found = compare(file, against, build.connection, build.profile, seed=seed, turns=turns, inputs=inputs)
            build.ledger.put("comparison", key, found)
        return found

    def ratio(self, file: Path, against: Path) -> float:
        """Return a quick estimate of a file's latency over another's."""
        return comparison_ratio(self.compared(file, against, QUICK_TURNS)).value

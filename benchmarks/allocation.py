"""Whether widths by measured latency keep a higher score than uniform widths, and than widths by counted MACs.

    EDGEOPT_DATA=DIR python benchmarks/allocation.py --cache FOLDER --json benchmarks/results/allocation.json

On the default task's residual network and on a depthwise one (trained briefly, its weights stay in ``--cache``),
uniform pruning to two shares of the channels sets two latencies. The other ways get the same importance and the same
multiples of channels:

- ``macs``, as pruning tools do it: all channels in one ranking, cut where counted MACs reach a target;
- ``macs-solver``: edgeopt's own solver and floors, with counted MACs in the place of the predicted latency;
- ``latency``: edgeopt's allocation.

Their limit is moved until the *measured* latency is that of uniform pruning (interleaved A/B). Then every choice of
widths is trained alike, with as many seeds, and its file scored on all test images.

Claims: ``score_gain_over_uniform_low95`` and ``score_gain_over_macs_low95``: the lower end of the 95 % interval (t,
over paired seeds) of the gain, meant over both latencies, for the network where it is least; ``seeds``;
``worst_latency_difference`` between files that are compared. A second part prunes ten architectures to two sizes as a
build does: ``pruned_shipped_ratio`` of the files are faster than their parent by an A/B and ship;
``shipped_slower_than_parent`` by a second A/B, which decides nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
from scipy import stats

from benchmarks.predictor import exported_at, finished
from edgeopt.bench.asking import file_sha256
from edgeopt.bench.compare import Turns, compare
from edgeopt.config.profiles import load_profile
from edgeopt.pipeline.build import Request, opened, start
from edgeopt.pipeline.candidates import distillation, importance_of
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.latency import latency_table
from edgeopt.pipeline.networks import export, table, train
from edgeopt.pipeline.rounds import Search
from edgeopt.records.codec import digest, to_json
from edgeopt.records.groups import GroupTable, WeightShape
from edgeopt.records.latency import NoLatencyTable
from edgeopt.records.measurement import Comparison
from edgeopt.records.recipe import Prune
from edgeopt.search.allocate import allocate, floors_of, uniform_widths, width_options
from edgeopt.search.predict import Predictor
from edgeopt.search.solve import Program, importance_costs, weight_costs
from edgeopt.search.workspace import Workspace
from edgeopt.statistics import LOOKS, comparison_ratio, verdict

FOLDER = Path(__file__).parent
FAMILIES = {"residual": "fashion", "depthwise": f"{FOLDER / 'fashion_tasks.py'}:depthwise"}
SHARES = (0.5, 0.25)
"""Of every group's channels, by uniform pruning: they set the latencies."""
METHODS = ("uniform", "macs", "macs-solver", "latency")
ZOO = ("mobilenet_v2", "mobilenet_v3", "efficientnet", "resnet18", "regnet", "shufflenet_v2", "unet", "ds_cnn", "vit",
       "lstm")  # fmt: skip
PARAMETERS_KEPT = (0.6, 0.3)
CLOSE = 0.01
"""Latencies nearer than this are equal; the search for a limit goes on until then."""
EQUAL = 0.02
"""Files whose latencies differ by more are not compared."""
STEPS = 8
QUICK_TURNS = Turns(pairs=6, pair_seconds=0.4)
SURE_TURNS = Turns(pairs=LOOKS[-1], pair_seconds=0.6)
TRAIN_EPOCHS = 2

Widths = dict[str, int]


class Chosen(NamedTuple):
    """Widths of one method at one latency, and their file."""

    method: str
    share: float
    widths: Widths
    file: Path
    limit: float
    """What the method was asked for, in its own terms."""
    against_uniform: Comparison | None


@contextmanager
def opened_task(task: str, root: Path, workers: int | None, epochs: int | None) -> Iterator[Build]:
    """Open a task as a build does."""
    asked = Request(
        task=task, data=None, profile=load_profile("phone"), device="local:", out=str(root / "out"),
        workspace=str(root), allow_fallback=(), workers=workers, time_limit_seconds=None, quick=False, more=False,
        command=(),
    )  # fmt: skip
    with (
        Workspace(root).open() as workspace,
        opened(asked, workspace, lambda _: asked.profile.limits, lambda *_: None) as build,
    ):
        effort = build.effort if epochs is None else msgspec.structs.replace(build.effort, epochs=epochs)
        yield dataclasses.replace(build, effort=effort)


class Bench:
    """One network: its groups, its latency table, and the timing of its pruned forms in float32."""

    def __init__(self, build: Build, folder: Path) -> None:
        self.build = build
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.search: Search = start(build)
        self.groups, _ = table(build, self.search.original, importance_of(build))
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
        """Return the file at these widths, with whichever channels: for its latency."""
        name = digest(widths)
        target = self.folder / f"{name}.onnx"
        if not target.exists():
            [source] = exported_at(self.build, self.search.exported, [widths], self.folder)
            self.as_shipped(source, name)
        return target

    def compared(self, file: Path, against: Path, turns: Turns, seed: int = 0) -> Comparison:
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


def macs_each(tensor: WeightShape) -> float:
    """Return the multiply-accumulates of each number of a tensor."""
    return float(tensor.macs_per_weight)


def by_ranking(groups: GroupTable, step: int, ratio: float) -> Widths:
    """Return the widths that global pruning leaves at a share of the MACs: the least important channels go, wherever.

    As pruning tools do it: all channels in one ranking, cut where the MACs come down to the target, at least one step
    of every group stays, and widths are rounded up to multiples of the step.
    """
    ranked = np.sort(np.concatenate([group.importance for group in groups.free]))
    scores = {group.name: np.asarray(group.importance) for group in groups.free}

    def at(threshold: float) -> Widths:
        kept = {name: max(1, int((score > threshold).sum())) for name, score in scores.items()}
        full = groups.widths()
        return full | {name: min(full[name], math.ceil(count / step) * step) for name, count in kept.items()}

    low, high = 0, len(ranked) - 1
    while low < high:
        middle = (low + high) // 2
        fits = groups.macs(at(float(ranked[middle]))) <= ratio * groups.macs({})
        low, high = (low, middle) if fits else (middle + 1, high)
    return at(float(ranked[low]))


def by_macs(groups: GroupTable, step: int, ratio: float) -> Widths:
    """Return the widths that lose the least importance at a share of the MACs; floors and solver are edgeopt's own."""
    most = ratio * groups.macs({})
    floors = floors_of(groups, lambda widths: groups.macs(widths) <= most, step)
    options = width_options(groups, floors, step)
    macs = weight_costs(groups, options, macs_each)
    assert macs is not None
    found = Program(options, sorted(macs.pairs)).solve(importance_costs(groups, options), [(macs, most)])
    if found is None:
        raise click.ClickException(f"no widths have {ratio:.1%} of the MACs")
    return found.widths


def by_latency(bench: Bench, ratio: float) -> Widths:
    """Return the widths that lose the least importance at a share of the predicted latency."""
    found = allocate(bench.groups, bench.step, bench.predictor, max_parameters=None, max_latency_ratio=ratio)
    return bench.groups.widths(found.widths)


def equally_fast(bench: Bench, propose: Callable[[float], Widths], first: float, uniform: Path) -> tuple[Widths, float]:
    """Return the widths, of those proposed, that are about as fast as the uniform ones when measured, and their limit.

    The limit is moved by the measured ratio, and halved into the bracket where that leads out of it.
    """
    low, high, limit = 0.0, math.inf, first
    tried: list[tuple[float, Widths, float]] = []
    for _ in range(STEPS):
        widths = propose(limit)
        ratio = bench.ratio(bench.file(widths), uniform)
        tried.append((abs(math.log(ratio)), widths, limit))
        click.echo(f"    limit {limit:.4f}: {ratio:.3f} of uniform's latency", err=True)
        if abs(ratio - 1) < CLOSE:
            break
        low, high = (limit, high) if ratio < 1 else (low, limit)
        limit /= ratio
        if not low < limit < high:
            limit = (low + high) / 2
    _, widths, limit = min(tried, key=lambda one: one[0])
    return widths, limit


def choose_widths(bench: Bench, share: float) -> list[Chosen]:
    """Return the widths of every method at the latency of uniform pruning to ``share`` of the channels."""
    uniform = bench.groups.widths(uniform_widths(bench.groups, share, bench.step))
    file = bench.file(uniform)
    found = [Chosen("uniform", share, uniform, file, share, None)]
    propose: dict[str, Callable[[float], Widths]] = {
        "macs": lambda ratio: by_ranking(bench.groups, bench.step, ratio),
        "macs-solver": lambda ratio: by_macs(bench.groups, bench.step, ratio),
        "latency": lambda ratio: by_latency(bench, ratio),
    }
    macs = bench.groups.macs(uniform) / bench.groups.macs({})
    first = {"macs": macs, "macs-solver": macs, "latency": bench.predictor.ratio(uniform)}
    for method, function in propose.items():
        click.echo(f"  {method} at uniform {share}", err=True)
        widths, limit = equally_fast(bench, function, first[method], file)
        sure = bench.compared(bench.file(widths), file, SURE_TURNS, seed=1)
        found.append(Chosen(method, share, widths, bench.file(widths), limit, sure))
    return found


def trained_score(bench: Bench, chosen: Chosen, seed: int) -> float:
    """Prune to these widths, train, export, and score the file on the test images."""
    build = dataclasses.replace(bench.build, seed=seed)
    full = bench.groups.widths()
    cut = {name: width for name, width in chosen.widths.items() if width < full[name]}
    steps = (Prune(importance=importance_of(build), widths=cut), distillation(build))
    original = bench.search.original
    network = train(build, original, steps, lambda: table(build, original, importance_of(build))[1],
                    original.parameters, lambda _: None)  # fmt: skip
    test = build.data.test_set()
    assert test is not None
    score, _ = bench.search.scale.evaluate(export(build, network).sha256, *test)
    return score


def run_family(bench: Bench, seeds: int, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row for each latency and method: widths, measured latency, and the score of every seed."""
    choices = [chosen for share in shares for chosen in choose_widths(bench, share)]
    unique = {digest(chosen.widths): chosen for chosen in choices}  # two ways may come to the same widths
    todo = [(key, seed) for seed in range(seeds) for key in unique]
    with ThreadPoolExecutor(bench.build.trainers.count) as pool:
        found = pool.map(lambda one: reported(bench, unique[one[0]], one[1]), todo)
        scores = dict(zip(todo, found, strict=True))
    rows = []
    for chosen in choices:
        ratio = comparison_ratio(chosen.against_uniform) if chosen.against_uniform else None
        rows.append(
            {
                "share": chosen.share,
                "method": chosen.method,
                "limit": chosen.limit,
                "widths": chosen.widths,
                "parameters": bench.groups.parameters(chosen.widths),
                "macs": bench.groups.macs(chosen.widths),
                "size_bytes": chosen.file.stat().st_size,
                "latency_against_uniform": None if ratio is None else [ratio.value, ratio.low, ratio.high],
                "predicted_ratio": bench.predictor.ratio(chosen.widths),
                "scores": [scores[digest(chosen.widths), seed] for seed in range(seeds)],
                "sample": None if chosen.against_uniform is None else json.loads(to_json(chosen.against_uniform)),
            }
        )
    return rows


def reported(bench: Bench, chosen: Chosen, seed: int) -> float:
    """Train, score, and say so."""
    begin = time.monotonic()
    score = trained_score(bench, chosen, seed)
    words = f"  {chosen.method} at uniform {chosen.share}, seed {seed}: {score:.4f}"
    click.echo(f"{words} in {time.monotonic() - begin:.0f} s", err=True)
    return score


def gains(rows: Sequence[dict[str, Any]], over: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the score by latency less that of another method: a row for each latency, a column for each seed."""
    scores = {(row["share"], row["method"]): row["scores"] for row in rows}
    shares = sorted({share for share, _ in scores}, reverse=True)
    return np.array([np.subtract(scores[share, "latency"], scores[share, over]) for share in shares])


def interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float, float]:
    """Return the mean and its 95 % t interval."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def figures(families: dict[str, list[dict[str, Any]]], zoo: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the claims, and the gain for each network, and for each of its latencies."""
    found: dict[str, Any] = {}
    for over in METHODS[:-1]:
        least = math.inf
        for family, rows in families.items():
            by_seed = gains(rows, over)
            mean, low, _ = interval(by_seed.mean(axis=0))
            name = over.replace("-", "_")
            found |= {f"{family}_gain_over_{name}": mean, f"{family}_gain_over_{name}_low95": low}
            for share, row in zip(SHARES, by_seed, strict=False):
                found[f"{family}_gain_over_{name}_at_{share}"] = interval(row)
            least = min(least, low)
        found[f"score_gain_over_{over.replace('-', '_')}_low95"] = least
    rows = [row for part in families.values() for row in part]
    apart = [abs(row["latency_against_uniform"][0] - 1) for row in rows if row["latency_against_uniform"]]
    found["worst_latency_difference"] = max(apart, default=None)
    found["seeds"] = min((len(row["scores"]) for row in rows), default=0)
    if zoo:
        shipped = [row for row in zoo if row["verdict"] == "faster"]
        found["pruned_candidates"] = len(zoo)
        found["pruned_shipped_ratio"] = len(shipped) / len(zoo)
        found["shipped_slower_than_parent"] = sum(row["second_verdict"] == "slower" for row in shipped)
    return found


def run_zoo(name: str, root: Path, workers: int | None) -> list[dict[str, Any]]:
    """Prune an architecture to each size as a build does, and compare it twice with its parent."""
    rows = []
    with opened_task(f"{FOLDER / 'random_tasks.py'}:{name}", root, workers, None) as build:
        bench = Bench(build, root / "files")
        for ratio in PARAMETERS_KEPT:
            most = ratio * bench.groups.parameters({})
            found = allocate(bench.groups, bench.step, bench.predictor, max_parameters=most, max_latency_ratio=None)
            file = bench.file(bench.groups.widths(found.widths))
            one, two = (bench.compared(file, bench.parent, SURE_TURNS, seed=seed) for seed in (0, 1))
            first, second = comparison_ratio(one), comparison_ratio(two)
            rows.append(
                {
                    "network": name, "parameters_ratio": bench.groups.parameters(found.widths) / most * ratio,
                    "verdict": verdict(one), "latency_ratio": [first.value, first.low, first.high],
                    "second_verdict": verdict(two), "second_ratio": [second.value, second.low, second.high],
                    "predicted_ratio": found.latency_ratio, "gap_ratio": found.gap_ratio,
                    "samples": [json.loads(to_json(one)), json.loads(to_json(two))],
                }
            )  # fmt: skip
            click.echo(f"{name} {ratio}: {verdict(one)} ({first.value:.3f}), again {verdict(two)}", err=True)
    return rows


@click.command()
@click.option("--quick", is_flag=True, help="One latency, two seeds, one epoch, two architectures.")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Workspaces and trained weights.")
@click.option("--seeds", default=8, show_default=True)
@click.option("--epochs", default=1, show_default=True)
@click.option("--workers", type=int, default=None, help="Trainings side by side; as many as cores by default.")
@click.option("--part", type=click.Choice(["all", *FAMILIES, "zoo"]), default="all", show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(quick: bool, cache: Path, seeds: int, epochs: int, workers: int | None, part: str, out: Path) -> None:
    """Measure, train and score; write figures and raw results after each network."""
    begin = time.monotonic()
    root = FOLDER.parent
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    cache = (cache / "quick" if quick else cache).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["EDGEOPT_BENCHMARK_WEIGHTS"] = str(cache)
    weights = cache / "depthwise.safetensors"
    if part in ("all", "depthwise") and not weights.exists():
        click.echo("depthwise: training", err=True)
        train_epochs = str(1 if quick else TRAIN_EPOCHS)
        command = [sys.executable, str(FOLDER / "train_fashion.py"), "depthwise", "--epochs", train_epochs, "--out"]
        subprocess.run([*command, str(weights)], check=True)
    families: dict[str, list[dict[str, Any]]] = {}
    zoo: list[dict[str, Any]] = []
    environment: dict[str, Any] = {}

    def write() -> None:
        document = {
            "figures": figures(families, zoo) | {"seconds": time.monotonic() - begin},
            "rows": {family: [without_samples(row) for row in rows] for family, rows in families.items()},
            "zoo": [without_samples(row) for row in zoo],
            "samples": {"families": families, "zoo": zoo},
            "environment": environment,
            "command": shlex.join(["python", *sys.argv]),
        }
        out.write_text(json.dumps(document) + "\n", encoding="utf-8")

    for family, task in FAMILIES.items():
        if part not in ("all", family):
            continue
        click.echo(family, err=True)
        with opened_task(task, cache / f"workspace-{family}", workers, 1 if quick else epochs) as build:
            environment = json.loads(to_json(build.environment))
            bench = Bench(build, cache / f"files-{family}")
            families[family] = run_family(bench, 2 if quick else seeds, SHARES[:1] if quick else SHARES)
        write()
    for name in (ZOO[:2] if quick else ZOO) if part in ("all", "zoo") else ():
        zoo += run_zoo(name, cache / f"workspace-{name}", workers)
        write()
    click.echo(json.dumps(figures(families, zoo), indent=1))


def without_samples(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its raw samples."""
    return {name: value for name, value in row.items() if name not in ("sample", "samples")}


if __name__ == "__main__":
    main()

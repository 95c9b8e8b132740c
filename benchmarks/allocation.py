"""Whether widths by measured latency keep a higher score than uniform widths, and than widths by counted MACs.

    EDGEOPT_DATA=DIR python benchmarks/allocation.py --cache FOLDER --json benchmarks/results/allocation.json

On the default task's residual network and on a depthwise one (trained briefly, its weights stay in ``--cache``),
uniform pruning to two shares of the channels, in multiples of the profile's step, sets two latencies. The other ways
get the same importance and the same multiples of channels:

- ``macs``, as pruning tools do it: all channels in one ranking, cut where counted MACs reach a target;
- ``latency``: edgeopt's allocation.

Their limit is moved until the *measured* latency is that of uniform pruning (interleaved A/B). Then every choice of
widths is trained alike, with as many seeds, and its file scored on all test images. ``uniform-exact``, the share to
the channel as pruning tools leave it, is timed alone.

Claims: ``score_gain_over_uniform_low95`` and ``score_gain_over_macs_low95``: the lower end of the 95 % interval (t,
over paired seeds) of the gain, meant over both latencies, for the network where it is least; ``seeds``;
``worst_latency_difference`` between files that are compared. ``shipping.py`` makes the other two:
``pruned_shipped_ratio`` and ``shipped_slower_than_parent``.
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from scipy import stats

from benchmarks.pruned_files import SURE_TURNS, PrunedFiles, Widths, opened_task
from benchmarks.shipping import ARCHITECTURES, run_architecture, shipping_figures
from edgeopt.pipeline.artifacts.networks import export_network, group_table_of, train_network
from edgeopt.pipeline.search.candidate import distillation, importance_of
from edgeopt.planning.widths import allocate, uniform_widths
from edgeopt.records.codec import digest, to_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.measurement import Comparison
from edgeopt.records.recipe import Prune
from edgeopt.statistics import comparison_ratio

FOLDER = Path(__file__).parent
FAMILIES = {"residual": "fashion", "depthwise": f"{FOLDER / 'fashion_tasks.py'}:depthwise"}
SHARES = (0.6, 0.3)
"""Of every group's channels, by uniform pruning: they set the latencies. At a half, widths of 32, 64 and 128 become
multiples of 16, blocks of AVX-512: there uniform widths are what measured latency asks for too."""
METHODS = ("uniform", "macs", "latency")
EXACT = "uniform-exact"
CLOSE = 0.01
"""Latencies nearer than this are equal; the search for a limit goes on until then."""
STEPS = 8
TRAIN_EPOCHS = 2


class Chosen(NamedTuple):
    """Widths of one method at one latency, and their file."""

    method: str
    share: float
    widths: Widths
    file: Path
    limit: float
    """What the method was asked for, in its own terms."""
    against_uniform: Comparison | None


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


def by_latency(files: PrunedFiles, ratio: float) -> Widths:
    """Return the widths that lose the least importance at a share of the predicted latency."""
    found = allocate(files.groups, files.step, files.predictor, max_parameters=None, max_latency_ratio=ratio)
    return files.groups.widths(found.widths)


def equally_fast(
    files: PrunedFiles, propose: Callable[[float], Widths], first: float, uniform: Path
) -> tuple[Widths, float]:
    """Return the widths, of those proposed, that are about as fast as the uniform ones when measured, and their limit.

    The limit is moved by the measured ratio, and halved into the bracket where that leads out of it.
    """
    low, high, limit = 0.0, math.inf, first
    tried: list[tuple[float, Widths, float]] = []
    for _ in range(STEPS):
        widths = propose(limit)
        ratio = files.ratio(files.file(widths), uniform)
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


def choose_widths(files: PrunedFiles, share: float) -> list[Chosen]:
    """Return the widths of every method at the latency of uniform pruning to ``share`` of the channels."""
    uniform = files.groups.widths(uniform_widths(files.groups, share, files.step))
    file = files.file(uniform)
    exact = files.groups.widths(uniform_widths(files.groups, share, 1))
    against = files.compared(files.file(exact), file, SURE_TURNS, seed=1)
    found = [
        Chosen("uniform", share, uniform, file, share, None),
        Chosen(EXACT, share, exact, files.file(exact), share, against),
    ]
    propose: dict[str, Callable[[float], Widths]] = {
        "macs": lambda ratio: by_ranking(files.groups, files.step, ratio),
        "latency": lambda ratio: by_latency(files, ratio),
    }
    macs = files.groups.macs(uniform) / files.groups.macs({})
    first = {"macs": macs, "latency": files.predictor.ratio(uniform)}
    for method, function in propose.items():
        click.echo(f"  {method} at uniform {share}", err=True)
        widths, limit = equally_fast(files, function, first[method], file)
        sure = files.compared(files.file(widths), file, SURE_TURNS, seed=1)
        found.append(Chosen(method, share, widths, files.file(widths), limit, sure))
    return found


def trained_score(files: PrunedFiles, chosen: Chosen, seed: int) -> float:
    """Prune to these widths, train, export, and score the file on the test images."""
    build = dataclasses.replace(files.build, seed=seed)
    full = files.groups.widths()
    cut = {name: width for name, width in chosen.widths.items() if width < full[name]}
    steps = (Prune(importance=importance_of(build), widths=cut), distillation(build))
    original = files.search.original
    network = train_network(build, original, steps, lambda: group_table_of(build, original, importance_of(build))[1],
                    original.parameters, lambda _: None)  # fmt: skip
    test = build.data.test_set()
    assert test is not None
    score, _ = files.search.scale.evaluate(export_network(build, network).sha256, *test)
    return score


def run_family(files: PrunedFiles, seeds: int, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row for each latency and method: widths, measured latency, and the score of every seed."""
    choices = [chosen for share in shares for chosen in choose_widths(files, share)]
    trained = [chosen for chosen in choices if chosen.method in METHODS]
    unique = {digest(chosen.widths): chosen for chosen in trained}  # two ways may come to the same widths
    todo = [(key, seed) for seed in range(seeds) for key in unique]
    with ThreadPoolExecutor(files.build.trainers.count) as pool:
        found = pool.map(lambda one: reported(files, unique[one[0]], one[1]), todo)
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
                "parameters": files.groups.parameters(chosen.widths),
                "macs": files.groups.macs(chosen.widths),
                "size_bytes": chosen.file.stat().st_size,
                "latency_against_uniform": None if ratio is None else [ratio.value, ratio.low, ratio.high],
                "predicted_ratio": files.predictor.ratio(chosen.widths),
                "scores": [scores[digest(chosen.widths), seed] for seed in range(seeds) if chosen in trained],
                "sample": None if chosen.against_uniform is None else json.loads(to_json(chosen.against_uniform)),
            }
        )
    return rows


def reported(files: PrunedFiles, chosen: Chosen, seed: int) -> float:
    """Train, score, and say so."""
    begin = time.monotonic()
    score = trained_score(files, chosen, seed)
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
    rows = [row for part in families.values() for row in part if row["method"] in METHODS]
    for over in METHODS[:-1] if families else ():
        least = math.inf
        for family, its in families.items():
            by_seed = gains([row for row in its if row["method"] in METHODS], over)
            mean, low, _ = interval(by_seed.mean(axis=0))
            found |= {f"{family}_gain_over_{over}": mean, f"{family}_gain_over_{over}_low95": low}
            for share, row in zip(SHARES, by_seed, strict=False):
                found[f"{family}_gain_over_{over}_at_{round(100 * share)}"] = interval(row)
            least = min(least, low)
        found[f"score_gain_over_{over}_low95"] = least
    apart = [abs(row["latency_against_uniform"][0] - 1) for row in rows if row["latency_against_uniform"]]
    found["worst_latency_difference"] = max(apart, default=None)
    found["seeds"] = min((len(row["scores"]) for row in rows), default=0)
    return found | shipping_figures(zoo)


@click.command()
@click.option("--quick", is_flag=True, help="One latency, two seeds, one epoch, two architectures.")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Workspaces and trained weights.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--workers", type=int, default=None, help="Trainings side by side; as many as cores by default.")
@click.option("--part", type=click.Choice(["all", *FAMILIES, "zoo"]), default="all", show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(quick: bool, cache: Path, seeds: int, epochs: int, workers: int | None, part: str, out: Path) -> None:
    """Measure, train and score; write figures and raw results after each network."""
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
            "figures": figures(families, zoo),
            "rows": families,
            "zoo": zoo,
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
            files = PrunedFiles(build, cache / f"files-{family}")
            families[family] = run_family(files, 2 if quick else seeds, SHARES[:1] if quick else SHARES)
        write()
    for name in (ARCHITECTURES[:2] if quick else ARCHITECTURES) if part in ("all", "zoo") else ():
        zoo += run_architecture(name, cache / f"workspace-{name}", workers)
        write()
    click.echo(json.dumps(figures(families, zoo), indent=1))


if __name__ == "__main__":
    main()

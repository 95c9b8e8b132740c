"""Compare the scores of three ways to choose widths, at equal measured latency: uniform, counted MACs, latency.

    EDGEOPT_DATA=DIR python benchmarks/allocation.py --cache FOLDER --json benchmarks/results/allocation.json

There are two networks: the default task's residual one and a depthwise one (trained briefly; its weights stay in
``--cache``). Uniform pruning keeps 60 % and 30 % of every group's channels, in multiples of the profile's step, which
sets two latencies. The other methods use the same importance and the same multiples:

- ``macs``, as in pruning tools: all channels are ranked together and removed until counted MACs reach a target;
- ``latency``: edgeopt's allocation.

Their limit is adjusted until the *measured* latency equals that of uniform pruning (interleaved A/B). Then all choices
of widths are trained in the same way, with the same seeds, and their files are scored on all test images.
``uniform-exact``, the same ratio without rounding to multiples, as pruning tools leave it, is only timed.

Claims: ``score_gain_over_uniform_low95`` and ``score_gain_over_macs_low95``: the lower end of the 95 % interval (t,
over paired seeds) of the gain averaged over both latencies, for the network with the smaller one; ``seeds``;
``worst_latency_difference`` between compared files. ``shipping.py`` adds ``pruned_shipped_ratio`` and
``shipped_slower_than_parent``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from scipy import stats

from benchmarks.fashion_tasks import let_processes_import_benchmarks, provide_weights
from benchmarks.pruned_files import FULL_TURNS, PrunedFiles, Widths, open_task
from benchmarks.shipping import ARCHITECTURES, compute_shipping_figures, run_architecture
from edgeopt.pipeline.artifacts.networks import export_network, group_table_of
from edgeopt.pipeline.artifacts.trained_networks import train_network
from edgeopt.pipeline.search.candidate import distillation, importance_of
from edgeopt.planning.widths import allocate, uniform_widths
from edgeopt.records.codec import digest, to_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.measurement import Comparison
from edgeopt.records.recipe import Prune
from edgeopt.statistics import comparison_ratio

FOLDER = Path(__file__).parent
FAMILIES = {"residual": "fashion", "depthwise": f"{FOLDER / 'fashion_tasks.py'}:depthwise"}
UNIFORM_RATIOS = (0.6, 0.3)
"""Channels that uniform pruning keeps of every group; they set the latencies. At one half, widths of 32, 64 and 128
become multiples of 16 (blocks of AVX-512), and measured latency leads to the same widths."""
METHODS = ("uniform", "macs", "latency")
EXACT = "uniform-exact"
EQUAL_LATENCY_RATIO = 0.01
"""Latencies that differ by less count as equal, which ends the search for a limit."""
MAX_LIMITS = 8
"""Limits tried for each method and latency."""
DEPTHWISE_EPOCHS = 2


class WidthChoice(NamedTuple):
    """Widths of one method at one latency, and their file."""

    method: str
    uniform_ratio: float
    """Channels kept by the uniform pruning that sets the latency."""
    widths: Widths
    file: Path
    limit: float
    """Ratio that the method was asked to keep: of channels, of MACs or of predicted latency."""
    against_uniform: Comparison | None


def choose_by_ranking(groups: GroupTable, step: int, ratio: float) -> Widths:
    """Return the widths after global pruning to a ratio of the MACs: the least important channels go, in any group.

    As in pruning tools, all channels are ranked together and removed until the MACs reach the target. Widths are
    rounded up to multiples of the step, so every group keeps at least one step.
    """
    ranked = np.sort(np.concatenate([group.importance for group in groups.free]))
    scores = {group.name: np.asarray(group.importance) for group in groups.free}

    def widths_at(threshold: float) -> Widths:
        kept = {name: max(1, int((score > threshold).sum())) for name, score in scores.items()}
        full = groups.widths()
        return full | {name: min(full[name], math.ceil(count / step) * step) for name, count in kept.items()}

    low, high = 0, len(ranked) - 1
    while low < high:
        middle = (low + high) // 2
        fits = groups.macs(widths_at(float(ranked[middle]))) <= ratio * groups.macs({})
        low, high = (low, middle) if fits else (middle + 1, high)
    return widths_at(float(ranked[low]))


def choose_by_latency(files: PrunedFiles, ratio: float) -> Widths:
    """Return the widths that lose the least importance at a ratio of the predicted latency."""
    allocation = allocate(files.groups, files.step, files.predictor, max_parameters=None, max_latency_ratio=ratio)
    return files.groups.widths(allocation.widths)


def match_latency(
    files: PrunedFiles, choose: Callable[[float], Widths], first_limit: float, uniform: Path
) -> tuple[Widths, float]:
    """Return the widths whose measured latency is closest to that of uniform pruning, and their limit.

    The limit is divided by the measured ratio; if that leaves the range of possible limits, the middle of the range is
    next.
    """
    low, high, limit = 0.0, math.inf, first_limit
    tried: list[tuple[float, Widths, float]] = []
    for _ in range(MAX_LIMITS):
        widths = choose(limit)
        ratio = files.estimate_ratio(files.make_file(widths), uniform)
        tried.append((abs(math.log(ratio)), widths, limit))
        click.echo(f"    limit {limit:.4f}: {ratio:.3f} of uniform's latency", err=True)
        if abs(ratio - 1) < EQUAL_LATENCY_RATIO:
            break
        low, high = (limit, high) if ratio < 1 else (low, limit)
        limit /= ratio
        if not low < limit < high:
            limit = (low + high) / 2
    _, widths, limit = min(tried, key=lambda attempt: attempt[0])
    return widths, limit


def choose_widths(files: PrunedFiles, ratio: float) -> list[WidthChoice]:
    """Return the widths of every method at the latency of uniform pruning to ``ratio`` of the channels."""
    uniform = files.groups.widths(uniform_widths(files.groups, ratio, files.step))
    uniform_file = files.make_file(uniform)
    exact = files.groups.widths(uniform_widths(files.groups, ratio, 1))
    exact_file = files.make_file(exact)
    comparison = files.compare(exact_file, uniform_file, FULL_TURNS, seed=1)
    choices = [
        WidthChoice("uniform", ratio, uniform, uniform_file, ratio, None),
        WidthChoice(EXACT, ratio, exact, exact_file, ratio, comparison),
    ]
    methods: dict[str, Callable[[float], Widths]] = {
        "macs": lambda limit: choose_by_ranking(files.groups, files.step, limit),
        "latency": lambda limit: choose_by_latency(files, limit),
    }
    macs_ratio = files.groups.macs(uniform) / files.groups.macs({})
    first_limits = {"macs": macs_ratio, "latency": files.predictor.ratio(uniform)}
    for method, choose in methods.items():
        click.echo(f"  {method}, at the latency of uniform {ratio}", err=True)
        widths, limit = match_latency(files, choose, first_limits[method], uniform_file)
        file = files.make_file(widths)
        comparison = files.compare(file, uniform_file, FULL_TURNS, seed=1)
        choices.append(WidthChoice(method, ratio, widths, file, limit, comparison))
    return choices


def train_and_score(files: PrunedFiles, choice: WidthChoice, seed: int) -> float:
    """Prune to these widths, train, export, and score the file on the test images."""
    build = dataclasses.replace(files.build, seed=seed)
    full = files.groups.widths()
    cut = {name: width for name, width in choice.widths.items() if width < full[name]}
    steps = (Prune(importance=importance_of(build), widths=cut), distillation(build))
    original = files.runner.original
    network = train_network(build, original, steps, lambda: group_table_of(build, original, importance_of(build))[1],
                    original.parameters, lambda _: None)  # fmt: skip
    test = build.data.test_set()
    assert test is not None
    return files.runner.evaluator.evaluate(export_network(build, network).sha256, *test).value


def run_family(files: PrunedFiles, seeds: int, ratios: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row for each latency and method: widths, measured latency, and the score of every seed."""
    choices = [choice for ratio in ratios for choice in choose_widths(files, ratio)]
    to_train = [choice for choice in choices if choice.method in METHODS]
    unique = {digest(choice.widths): choice for choice in to_train}  # two methods may choose the same widths
    jobs = [(key, seed) for seed in range(seeds) for key in unique]
    with ThreadPoolExecutor(files.build.torch_pool.count) as pool:
        results = pool.map(lambda job: train_and_report(files, unique[job[0]], job[1]), jobs)
        scores = dict(zip(jobs, results, strict=True))
    rows = []
    for choice in choices:
        ratio = comparison_ratio(choice.against_uniform) if choice.against_uniform else None
        rows.append(
            {
                "share": choice.uniform_ratio,
                "method": choice.method,
                "limit": choice.limit,
                "widths": choice.widths,
                "parameters": files.groups.parameters(choice.widths),
                "macs": files.groups.macs(choice.widths),
                "size_bytes": choice.file.stat().st_size,
                "latency_against_uniform": None if ratio is None else [ratio.value, ratio.low, ratio.high],
                "predicted_ratio": files.predictor.ratio(choice.widths),
                "scores": [scores[digest(choice.widths), seed] for seed in range(seeds) if choice in to_train],
                "sample": None if choice.against_uniform is None else json.loads(to_json(choice.against_uniform)),
            }
        )
    return rows


def train_and_report(files: PrunedFiles, choice: WidthChoice, seed: int) -> float:
    """Train, score, and print the score."""
    begin = time.monotonic()
    score = train_and_score(files, choice, seed)
    line = f"  {choice.method}, at the latency of uniform {choice.uniform_ratio}, seed {seed}: {score:.4f}"
    click.echo(f"{line} in {time.monotonic() - begin:.0f} s", err=True)
    return score


def compute_gains(rows: Sequence[dict[str, Any]], other: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the score by latency less that of another method: a row for each latency, a column for each seed."""
    scores = {(row["share"], row["method"]): row["scores"] for row in rows}
    ratios = sorted({ratio for ratio, _ in scores}, reverse=True)
    return np.array([np.subtract(scores[ratio, "latency"], scores[ratio, other]) for ratio in ratios])


def compute_interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float, float]:
    """Return the mean and its 95 % t interval."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    margin = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - margin, mean + margin


def compute_figures(families: dict[str, list[dict[str, Any]]], zoo: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the claims, and the gain for each network and for each of its latencies."""
    figures: dict[str, Any] = {}
    rows = [row for family_rows in families.values() for row in family_rows if row["method"] in METHODS]
    for other in METHODS[:-1] if families else ():
        smallest = math.inf
        for family, family_rows in families.items():
            gains = compute_gains([row for row in family_rows if row["method"] in METHODS], other)
            mean, low, _ = compute_interval(gains.mean(axis=0))
            figures |= {f"{family}_gain_over_{other}": mean, f"{family}_gain_over_{other}_low95": low}
            for ratio, by_seed in zip(UNIFORM_RATIOS, gains, strict=False):
                figures[f"{family}_gain_over_{other}_at_{round(100 * ratio)}"] = compute_interval(by_seed)
            smallest = min(smallest, low)
        figures[f"score_gain_over_{other}_low95"] = smallest
    differences = [abs(row["latency_against_uniform"][0] - 1) for row in rows if row["latency_against_uniform"]]
    figures["worst_latency_difference"] = max(differences, default=None)
    figures["seeds"] = min((len(row["scores"]) for row in rows), default=0)
    return figures | compute_shipping_figures(zoo)


@click.command()
@click.option("--quick", is_flag=True, help="One latency, two seeds, one epoch, two architectures.")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for workspaces and weights.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--workers", type=int, default=None, help="Parallel trainings (default: one per core).")
@click.option("--part", type=click.Choice(["all", *FAMILIES, "zoo"]), default="all", show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(quick: bool, cache: Path, seeds: int, epochs: int, workers: int | None, part: str, out: Path) -> None:
    """Measure, train and score; write figures and raw results after each network."""
    let_processes_import_benchmarks()
    cache = (cache / "quick" if quick else cache).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    if part in ("all", "depthwise"):
        provide_weights(cache, "depthwise", 1 if quick else DEPTHWISE_EPOCHS)
    families: dict[str, list[dict[str, Any]]] = {}
    zoo: list[dict[str, Any]] = []
    environment: dict[str, Any] = {}

    def write() -> None:
        document = {
            "figures": compute_figures(families, zoo),
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
        with open_task(task, cache / f"workspace-{family}", workers, 1 if quick else epochs) as build:
            environment = json.loads(to_json(build.environment))
            files = PrunedFiles(build, cache / f"files-{family}")
            families[family] = run_family(files, 2 if quick else seeds, UNIFORM_RATIOS[:1] if quick else UNIFORM_RATIOS)
        write()
    for name in (ARCHITECTURES[:2] if quick else ARCHITECTURES) if part in ("all", "zoo") else ():
        zoo += run_architecture(name, cache / f"workspace-{name}", workers)
        write()
    click.echo(json.dumps(compute_figures(families, zoo), indent=1))


if __name__ == "__main__":
    main()

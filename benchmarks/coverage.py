"""Count the architectures that are pruned as asked, by edgeopt and by torch-pruning 1.6.1.

    pip install '.[bench]'
    python benchmarks/coverage.py [--quick] [--only NAME ...] [--jobs N] --json benchmarks/results/coverage.json

Both tools prune every architecture of ``benchmarks/zoo`` (from public definitions) and model types of Hugging Face
transformers (``benchmarks/zoo/model_types.py`` states which) by 30 % and by 50 % of the channels, each in a separate
process with one thread and a time limit. To **pass**, at both ratios:

- at least 0.9 of the requested output channels are removed, summed over all layers except those with fixed outputs (the
  same layers for both tools);
- the pruned network equals the zero-masked original at every node, and, for those that ``independent_check.py`` names,
  the zero-masked module;
- one training step works;
- the exported ONNX file has parity;
- no channel is blocked by an operator without a rule.

torch-pruning proves nothing: it counts as exact if it runs and keeps the shapes of the outputs.

``--add`` keeps what the file has and measures only what it lacks, so an interrupted run goes on; with ``--only``, these
architectures are measured again. With ``--jobs``, the seconds include waiting for the other processes.

Claims: ``architectures``, ``pass_ratio``, ``fresh_pass_ratio`` (over those that came into the zoo after the rules),
``torch_pruning_pass_ratio`` (of ``torch_pruning_architectures``), ``silent_no_ops`` (networks left unchanged without
naming an operator), ``handled_by_torch_pruning_alone``, ``worst_proof_error``, ``independently_checked``,
``worst_independent_error``, ``planted_faults``, ``caught_fault_ratio``, ``core_operators_decided_ratio``,
``resnet50_analysis_seconds``, ``largest_analysis_seconds``.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
TOOLS = ("edgeopt", "torch_pruning")
TIME_LIMIT_SECONDS = 400.0
MIN_REACHED_RATIO = 0.9
"""Of the requested reduction."""
PROOF_TOLERANCE = 1e-9
PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = (
    "benchmarks.coverage_worker", "torch._dynamo", "torch._inductor.decomposition", "torch.onnx", "torch_pruning",
    "transformers.modeling_utils", "transformers.masking_utils", "transformers.models.auto.modeling_auto",
)  # fmt: skip
"""Modules that nearly every process needs; importing them takes longer than pruning a small network."""
QUICK_ARCHITECTURES = ("mobilenet_v2", "shufflenet_v2", "bert", "tcn")
PACKAGES = ("torch", "onnx", "onnxruntime", "transformers", "torch-pruning")

Row = dict[str, Any]


def measure(tool: str, name: str, seconds: float) -> Row:
    """Run one tool on one architecture in a separate process, forked from one that has imported the libraries."""
    from benchmarks import coverage_worker

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        start = time.perf_counter()
        process = PROCESSES.Process(target=coverage_worker.run, args=(tool, name, out))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            reason = f"not finished after {seconds:.0f} s"
        else:
            reason = f"exit code {process.exitcode}"
        result: Row = json.loads(out.read_text()) if out.exists() else {"failure": reason, "common": {}, "rows": []}
    elapsed = time.perf_counter() - start
    return {"tool": tool, "name": name, "seconds": elapsed, "revision": _revision(), **result}


def _prepare_processes() -> None:
    """Set what the process that forks must find in its environment, and what it imports."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()}
    PROCESSES.set_forkserver_preload(list(PRELOADED))


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _revision() -> str:
    """Return the commit that is measured; ``--add`` may complete a run at a later one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def find_shortfall(sample: Row) -> str:
    """Return why an architecture does not pass; empty if it does."""
    if sample["failure"]:
        return str(sample["failure"])
    blocked = sample["common"].get("blocked_by")
    if blocked:
        return f"no rule for {', '.join(blocked)}"
    reasons = [reason for row in sample["rows"] if (reason := _find_row_shortfall(row, sample["tool"]))]
    return reasons[0] if reasons else ""


def _find_row_shortfall(row: Row, tool: str) -> str:
    if row.get("failure"):
        return str(row["failure"])
    if row["reached"] < MIN_REACHED_RATIO:
        return f"{row['reached']:.2f} of the requested reduction at {row['asked_ratio']:.0%}"
    if tool == "edgeopt" and (row["proof_error"] is None or row["proof_error"] > PROOF_TOLERANCE):
        return f"not exact: {row.get('proof_refusal', row['proof_error'])}"
    if row.get("independent_error", 0.0) > PROOF_TOLERANCE:
        return f"not exact: the outputs differ by {row['independent_error']:.2g} from the zero-masked module's"
    if not row.get("outputs_keep_their_shape", True):
        return "the outputs were pruned"
    if row["training_refusal"]:
        return str(row["training_refusal"])
    return f"no ONNX file with parity: {row['export_refusal']}" if row["exporter"] is None else ""


def is_silent_no_op(sample: Row) -> bool:
    """Tell whether nothing was removed and no operator was named."""
    return (
        not sample["failure"]
        and any(row.get("removed_ratio") == 0 for row in sample["rows"])
        and not sample["common"].get("blocked_by")
    )


def make_row(name: str, samples: dict[str, Row]) -> Row:
    """Return the results of all tools on one architecture."""
    row: Row = {"name": name}
    for tool, sample in samples.items():
        reason = find_shortfall(sample)
        row[tool] = {
            "pass": not reason,
            "reason": reason,
            "reached": [at_ratio.get("reached") for at_ratio in sample["rows"]],
            "parameters_left": [at_ratio.get("parameters_left_ratio") for at_ratio in sample["rows"]],
            "macs_left": [at_ratio.get("macs_left_ratio") for at_ratio in sample["rows"]],
            "analysis_seconds": sample["common"].get("analysis_seconds"),
        }
    return row


def compute_figures(samples: list[Row], fresh: Collection[str] = ()) -> Row:
    """Return the claims, and the architectures that do not pass.

    Args:
        samples: What ``measure`` returned.
        fresh: The architectures that came into the zoo after the rules.
    """
    edgeopt = [sample for sample in samples if sample["tool"] == "edgeopt"]
    peer = [sample for sample in samples if sample["tool"] == "torch_pruning"]
    passed_by_peer = {sample["name"]: not find_shortfall(sample) for sample in peer}
    passed = {sample["name"]: not find_shortfall(sample) for sample in edgeopt}
    errors = [row["proof_error"] for sample in edgeopt for row in sample["rows"] if row.get("proof_error") is not None]
    independent = {
        sample["name"]: max(row["independent_error"] for row in sample["rows"])
        for sample in edgeopt
        if sample["rows"] and all("independent_error" in row for row in sample["rows"])
    }
    unproven = [s["name"] for s in edgeopt for row in s["rows"] if "proof_refusal" in row]
    faults = sum(sample["common"].get("planted_faults", 0) for sample in edgeopt)
    missed = sum(len(sample["common"].get("missed_faults", ())) for sample in edgeopt)
    times = {sample["name"]: sample["common"].get("analysis_seconds") for sample in edgeopt}
    return {
        "architectures": len(edgeopt),
        "pass_ratio": sum(passed.values()) / len(edgeopt),
        "fresh_architectures": len(passed.keys() & set(fresh)),
        "fresh_pass_ratio": _mean([passed[name] for name in passed if name in fresh]),
        "torch_pruning_architectures": len(passed_by_peer),
        "torch_pruning_pass_ratio": sum(passed_by_peer.values()) / len(passed_by_peer) if passed_by_peer else None,
        "silent_no_ops": sum(map(is_silent_no_op, edgeopt)),
        "torch_pruning_silent_no_ops": sum(map(is_silent_no_op, peer)),
        "handled_by_torch_pruning_alone": [
            name for name, passes in passed_by_peer.items() if passes and passed.get(name) is False
        ],
        "short": {sample["name"]: find_shortfall(sample) for sample in edgeopt if not passed[sample["name"]]},
        "worst_proof_error": max(errors, default=None),
        "inexact": sorted(set(unproven)),
        "independently_checked": len(independent),
        "worst_independent_error": max(independent.values(), default=None),
        "planted_faults": faults,
        "caught_fault_ratio": 1 - missed / faults if faults else None,
        "core_operators_decided_ratio": _find_decided_ratio(),
        "resnet50_analysis_seconds": times.get("resnet50"),
        "largest_analysis_seconds": max((t for t in times.values() if t is not None), default=None),
    }


def _mean(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _find_decided_ratio() -> float | None:
    """Return the part of ATen's core operators with a rule or a reason to freeze; None if there is no table of them."""
    table = "edgeopt.passes.prune.core_operators"
    if importlib.util.find_spec(table) is None:
        return None
    decisions = importlib.import_module(table).decided_core_operators().values()
    return sum(decision is not None for decision in decisions) / len(decisions)


@click.command()
@click.option("--quick", is_flag=True, help="Four architectures.")
@click.option("--only", multiple=True, help="Only this architecture (repeat for more).")
@click.option("--tool", "tools", multiple=True, type=click.Choice(TOOLS), default=TOOLS)
@click.option("--add", is_flag=True, help="Keep the file's results; measure what it lacks, or what --only names.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="Number of processes at a time.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, only: tuple[str, ...], tools: tuple[str, ...], add: bool, jobs: int, out: Path) -> None:
    """Prune every architecture, print a line for each, and write figures, rows and raw results."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.zoo.every import EVERY, NEW

    _prepare_processes()
    names = list(only) or (list(QUICK_ARCHITECTURES) if quick else list(EVERY))
    unknown = [name for name in names if name not in EVERY]
    if unknown:
        raise click.BadParameter(f"The zoo has no {', '.join(unknown)}.", param_hint="--only")
    samples: dict[tuple[str, str], Row] = {}
    if add and out.exists():
        samples = {(sample["name"], sample["tool"]): sample for sample in json.loads(out.read_text())["samples"]}
    missing = [(name, tool) for name in names for tool in tools if only or (name, tool) not in samples]
    out.parent.mkdir(parents=True, exist_ok=True)
    order = {name: index for index, name in enumerate(EVERY)}
    pool = ThreadPoolExecutor(jobs)
    try:
        running = [pool.submit(measure, tool, name, TIME_LIMIT_SECONDS) for name, tool in missing]
        for done in as_completed(running):
            sample = done.result()
            samples[sample["name"], sample["tool"]] = sample
            print(f"{sample['name']:32} {sample['tool']:14} {find_shortfall(sample) or 'pass'}", flush=True)
            _write(out, sorted(samples.values(), key=lambda sample: (order[sample["name"]], sample["tool"])), NEW)
    finally:
        pool.shutdown(cancel_futures=True)
    print(json.dumps(json.loads(out.read_text())["figures"], indent=1))


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # torch-pruning, if only edgeopt is measured
        return None


def _write(out: Path, samples: list[Row], fresh: Collection[str]) -> None:
    by_name: dict[str, dict[str, Row]] = {}
    for sample in samples:
        by_name.setdefault(sample["name"], {})[sample["tool"]] = sample
    result = {
        "figures": compute_figures(samples, fresh) if any(sample["tool"] == "edgeopt" for sample in samples) else {},
        "rows": [make_row(name, by_tool) for name, by_tool in by_name.items()],
        "samples": samples,
        "environment": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "packages": {name: _find_version(name) for name in PACKAGES},
        },
        "command": "python " + shlex.join(sys.argv),
    }
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(out)


if __name__ == "__main__":
    main()

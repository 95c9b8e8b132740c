"""How many architectures are pruned as asked, by edgeopt and by torch-pruning 1.6.1.

    pip install '.[bench]'
    python benchmarks/coverage.py [--quick] [--only NAME ...] --json benchmarks/results/coverage.json

Every architecture of ``benchmarks/zoo`` and twelve of Hugging Face transformers, at 30 % and 50 % of the channels,
each tool on each in a process of its own with a time limit. **A pass**, at both ratios: at least 0.9 of the reduction
of output channels asked for (summed over all layers but those whose outputs are fixed by nature, the same for both
tools), exact at every node against the zero-masked original, one training step, and an ONNX file with parity; no
operator without a rule may block channels. torch-pruning proves nothing: it is taken for exact where it runs and keeps
the outputs' shapes.

Claims: ``architectures``, ``pass_ratio``, ``torch_pruning_pass_ratio``, ``silent_no_ops`` (networks left as they were
where no operator is named), ``handled_by_torch_pruning_alone``, ``worst_proof_error``, ``planted_faults``,
``caught_fault_ratio``, ``resnet50_analysis_seconds``, ``largest_analysis_seconds``.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
TOOLS = ("edgeopt", "torch_pruning")
TIME_LIMIT_SECONDS = 400.0
ENOUGH = 0.9
"""Share of the asked reduction that has to be reached."""
PROOF_TOLERANCE = 1e-9
QUICK = ("mobilenet_v2", "shufflenet_v2", "bert", "tcn")
PACKAGES = ("torch", "onnx", "onnxruntime", "transformers", "torch-pruning")

Row = dict[str, Any]


def measure(tool: str, name: str, seconds: float) -> Row:
    """Run one tool on one architecture in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "coverage_worker.py"), tool, name, str(out)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": _python_path()}
        start = time.perf_counter()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False, env=environment
            )
            reason = None if out.exists() else _reason(done)
        except subprocess.TimeoutExpired:
            reason = f"not done after {seconds:.0f} s"
        result: Row = json.loads(out.read_text()) if out.exists() else {"common": {}, "rows": []}
    took = time.perf_counter() - start
    return {"tool": tool, "name": name, "failure": reason, "seconds": took, "revision": _revision(), **result}


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _revision() -> str:
    """Return the commit that is measured; a run may be completed (``--add``) at a later one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return f"exit code {done.returncode}: {lines[-1][:400] if lines else 'nothing said'}"


def shortfall(sample: Row) -> str:
    """Say why an architecture is no pass; empty where it is one."""
    if sample["failure"]:
        return str(sample["failure"])
    blocked = sample["common"].get("blocked_by")
    if blocked:
        return f"no rule for {', '.join(blocked)}"
    reasons = [reason for row in sample["rows"] if (reason := _row_shortfall(row, sample["tool"]))]
    return reasons[0] if reasons else ""


def _row_shortfall(row: Row, tool: str) -> str:
    if row.get("failure"):
        return str(row["failure"])
    if row["reached"] < ENOUGH:
        return f"{row['reached']:.2f} of the reduction asked for at {row['asked_ratio']:.0%}"
    if tool == "edgeopt" and (row["proof_error"] is None or row["proof_error"] > PROOF_TOLERANCE):
        return f"not exact: {row.get('proof_refusal', row['proof_error'])}"
    if not row.get("outputs_keep_their_shape", True):
        return "the outputs were pruned"
    if row["training_refusal"]:
        return str(row["training_refusal"])
    return f"no ONNX file with parity: {row['export_refusal']}" if row["exporter"] is None else ""


def silent_no_op(sample: Row) -> bool:
    """Tell whether nothing was removed and no operator named."""
    return (
        not sample["failure"]
        and any(row.get("removed_ratio") == 0 for row in sample["rows"])
        and not sample["common"].get("blocked_by")
    )


def table_row(name: str, samples: dict[str, Row]) -> Row:
    """Put the two tools side by side."""
    row: Row = {"name": name}
    for tool, sample in samples.items():
        reason = shortfall(sample)
        row[tool] = {
            "pass": not reason,
            "reason": reason,
            "reached": [one.get("reached") for one in sample["rows"]],
            "parameters_left": [one.get("parameters_left_ratio") for one in sample["rows"]],
            "macs_left": [one.get("macs_left_ratio") for one in sample["rows"]],
            "analysis_seconds": sample["common"].get("analysis_seconds"),
        }
    return row


def figures(samples: list[Row]) -> Row:
    """Summarize: shares of passes, no-ops, proofs, faults and times."""
    own = [sample for sample in samples if sample["tool"] == "edgeopt"]
    peer = {sample["name"]: not shortfall(sample) for sample in samples if sample["tool"] == "torch_pruning"}
    passed = {sample["name"]: not shortfall(sample) for sample in own}
    errors = [row["proof_error"] for sample in own for row in sample["rows"] if row.get("proof_error") is not None]
    unproven = [s["name"] for s in own for row in s["rows"] if "proof_refusal" in row]
    faults = sum(sample["common"].get("planted_faults", 0) for sample in own)
    missed = sum(len(sample["common"].get("missed_faults", ())) for sample in own)
    times = {sample["name"]: sample["common"].get("analysis_seconds") for sample in own}
    return {
        "architectures": len(own),
        "pass_ratio": sum(passed.values()) / len(own),
        "torch_pruning_pass_ratio": sum(peer.values()) / len(peer) if peer else None,
        "silent_no_ops": sum(map(silent_no_op, own)),
        "torch_pruning_silent_no_ops": sum(silent_no_op(s) for s in samples if s["tool"] == "torch_pruning"),
        "handled_by_torch_pruning_alone": [name for name, fine in peer.items() if fine and passed.get(name) is False],
        "short": {sample["name"]: shortfall(sample) for sample in own if not passed[sample["name"]]},
        "worst_proof_error": max(errors, default=None),
        "inexact": sorted(set(unproven)),
        "planted_faults": faults,
        "caught_fault_ratio": 1 - missed / faults if faults else None,
        "resnet50_analysis_seconds": times.get("resnet50"),
        "largest_analysis_seconds": max((t for t in times.values() if t is not None), default=None),
    }


@click.command()
@click.option("--quick", is_flag=True, help="Four architectures.")
@click.option("--only", multiple=True, help="These architectures.")
@click.option("--tool", "tools", multiple=True, type=click.Choice(TOOLS), default=TOOLS)
@click.option("--add", is_flag=True, help="Keep what the file holds of other architectures and the other tool.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, only: tuple[str, ...], tools: tuple[str, ...], add: bool, out: Path) -> None:
    """Run every architecture, print a line for each, and write figures, rows and raw results."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.zoo import ARCHITECTURES
    from benchmarks.zoo.hugging_face import HUGGING_FACE

    everything = [*ARCHITECTURES, *HUGGING_FACE]
    chosen = list(only) or (list(QUICK) if quick else everything)
    samples: dict[tuple[str, str], Row] = {}
    if add and out.exists():
        samples = {(sample["name"], sample["tool"]): sample for sample in json.loads(out.read_text())["samples"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        for tool in tools:
            samples[name, tool] = measure(tool, name, TIME_LIMIT_SECONDS)
            print(f"{name:20} {tool:14} {shortfall(samples[name, tool]) or 'pass'}", flush=True)
        _write(out, [samples[key] for key in sorted(samples, key=lambda key: everything.index(key[0]))])
    print(json.dumps(json.loads(out.read_text())["figures"], indent=1))


def _write(out: Path, samples: list[Row]) -> None:
    by_name: dict[str, dict[str, Row]] = {}
    for sample in samples:
        by_name.setdefault(sample["name"], {})[sample["tool"]] = sample
    result = {
        "figures": figures(samples) if any(sample["tool"] == "edgeopt" for sample in samples) else {},
        "rows": [table_row(name, of_tools) for name, of_tools in by_name.items()],
        "samples": samples,
        "environment": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "packages": {name: version(name) for name in PACKAGES},
        },
        "command": "python " + shlex.join(sys.argv),
    }
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(out)


if __name__ == "__main__":
    main()

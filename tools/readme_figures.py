"""Write the README's tables from the results of the benchmarks.

python tools/readme_figures.py [--check]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict[str, Any] | None:
    """Return a benchmark's results, or None where it was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def ratio(value: float | None) -> str:
    """Return a ratio in words."""
    return "–" if value is None else f"{value:.1f}×"


def default_build(result: dict[str, Any]) -> str:
    """Return the table of the default build."""
    figures = result["figures"]
    lines = [
        "Against the exported fp32 file; speed by interleaved A/B on one thread; the drop is in points of 0.01.",
        "",
        "| | file | smaller | faster | drop on the selection images |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["size_ratio"] is None:
            lines.append(f"| {row['name']} | nothing keeps the limits | | | |")
            continue
        low, high = row["selection_drop_ci95"]
        lines.append(
            f"| {row['name']} | {row['size_bytes'] / 1e3:.0f} kB | {ratio(row['size_ratio'])} | "
            f"{ratio(row['speed_ratio'])} | {row['selection_drop'] * 100:.2f} ({low * 100:.2f} to {high * 100:.2f}) |"
        )
    environment = result["samples"]["default"]["trials"][0]
    drop_low, drop_high = figures["test_drop_ci95"]
    processor = result["samples"]["default"].get("environment", {}).get("processor", "")
    lines += [
        "",
        f"On the {figures['test_images']:,} test images, looked at once: "
        f"baseline {figures['baseline_test_score']:.4f}, "
        f"winner {figures['baseline_test_score'] - figures['test_drop']:.4f} "
        f"({figures['test_drop'] * 100:.2f} points lower; 95 %: {drop_low * 100:.2f} to {drop_high * 100:.2f}). "
        f"The build took {figures['seconds'] / 60:.1f} minutes on two cores"
        + (f" of {processor}" if processor else "")
        + f" (baseline {environment['size_bytes'] / 1e6:.2f} MB).",
        "",
        f"`{result['command']}` measures it again; raw results in `benchmarks/results/default_build.json`.",
    ]
    return "\n".join(lines)


CLAIMS = {
    "coverage": "{architectures} architectures pruned by 30 and 50 %: {pass_ratio:.0%} pass (exact at every node, "
    "trained, exported with parity); torch-pruning {torch_pruning_pass_ratio:.0%}; {silent_no_ops} silently unpruned",
    "predictor": "{networks} held-out pruned networks: predicted latency is off by {median_error_ratio:.1%} at the "
    "median and {p90_error_ratio:.1%} at the 90th percentile",
    "quantization": "{architectures} networks on 10,000 test images: at most {worst_score_drop:.4f} lost, "
    "{int8_shipped_ratio:.0%} ship int8, {int8_faster_ratio:.0%} faster, {shipped_slower_than_float} slower than float "
    "(onnxruntime.quantization's defaults: {onnxruntime-static_worst_score_drop:.4f}, "
    "{onnxruntime-static_int8_faster_ratio:.0%} faster, {onnxruntime-static_shipped_slower_than_float} slower; NNCF: "
    "{nncf_worst_score_drop:.4f}, {nncf_int8_faster_ratio:.0%}, {nncf_shipped_slower_than_float})",
    "allocation": "at equal measured latency and equal short training, over {seeds} seeds, widths by measured latency "
    "keep more of the score than uniform widths of 60 % and of 30 % of the channels: "
    "{residual_gain_over_uniform_at_60[0]:.4f} and {residual_gain_over_uniform_at_30[0]:.4f} (residual), "
    "{depthwise_gain_over_uniform_at_60[0]:.4f} and "
    "{depthwise_gain_over_uniform_at_30[0]:.4f} (depthwise; lower ends of 95 %: "
    "{residual_gain_over_uniform_at_60[1]:.4f}, {residual_gain_over_uniform_at_30[1]:.4f}, "
    "{depthwise_gain_over_uniform_at_60[1]:.4f}, {depthwise_gain_over_uniform_at_30[1]:.4f}), and more than a global "
    "ranking cut at counted MACs: {residual_gain_over_macs_at_60[0]:.4f} and {residual_gain_over_macs_at_30[0]:.2f}, "
    "{depthwise_gain_over_macs_at_60[0]:.2f} and {depthwise_gain_over_macs_at_30[0]:.2f}; of {pruned_candidates} "
    "pruned files of ten architectures {pruned_shipped_ratio:.0%} were faster than their parent and would ship, "
    "{shipped_slower_than_parent} of these slower in a second A/B",
    "verdicts": "{equal_files_compared} A/B comparisons of a file with its copy: {false_verdict_ratio:.1%} called "
    "different; 5 % more work found in {found_5_percent_ratio:.0%} of {planted_compared}",
    "memory": "peak memory against known weights and activations: off by {worst_error_ratio:.1%} at worst "
    "({networks} networks)",
    "importance": "first-order Taylor keeps {gain_over_random:.3f} more of the score than random channels; best of its "
    "comparison: {best_method}",
}
"""Benchmark to its claim, with the names of its figures."""


def claims() -> str:
    """Return the list of what the other benchmarks found."""
    lines = []
    for name, text in CLAIMS.items():
        result = load(name)
        if result is not None:
            claim = text.format(**result["figures"])
            lines.append(f"- `benchmarks/{name}.py`: {claim}.")
    return "\n".join(lines)


def replaced(text: str) -> str:
    """Return the README with every table written anew."""
    build = load("default_build")
    tables = {"claims": claims()} | ({"default-build": default_build(build)} if build else {})
    for marker, table in tables.items():
        begin = f"<!-- {marker}:begin (written by tools/readme_figures.py) -->"
        end = f"<!-- {marker}:end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


@click.command()
@click.option("--check", is_flag=True, help="Fail where the README differs; write nothing.")
def main(check: bool) -> None:
    """Write the tables, or check them."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = replaced(old)
    if check and new != old:
        raise click.ClickException("the README's tables differ from benchmarks/results: run tools/readme_figures.py.")
    if not check:
        path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

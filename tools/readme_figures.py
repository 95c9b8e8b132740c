"""Write the benchmark results into the tables of README.md and benchmarks/README.md.

python tools/readme_figures.py [--check]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def load_result(name: str) -> dict[str, Any] | None:
    """Return a benchmark's result, or None if it was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def format_ratio(value: float | None) -> str:
    """Return a ratio as text, or a dash for None."""
    return "–" if value is None else f"{value:.1f}×"


def format_default_table(result: dict[str, Any]) -> str:
    """Return the table of the default build, and its command."""
    lines = [
        "Compared with the exported fp32 file; score drop in points of 0.01, with its 95 % interval.",
        "",
        "| | file | smaller | faster | score drop on the selection images |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["size_ratio"] is None:
            lines.append(f"| {row['name']} | no trial keeps the limits | | | |")
            continue
        low, high = row["selection_drop_ci95"]
        lines.append(
            f"| {row['name']} | {row['size_bytes'] / 1e3:.0f} kB | {format_ratio(row['size_ratio'])} | "
            f"{format_ratio(row['speed_ratio'])} | "
            f"{row['selection_drop'] * 100:.2f} ({low * 100:.2f} to {high * 100:.2f}) |"
        )
    figures = result["figures"]
    low, high = (100 * end for end in figures["test_drop_ci95"])
    drop = f"On {figures['test_images']:,} test images: {100 * figures['test_drop']:.2f} ({low:.2f} to {high:.2f})."
    return "\n".join([*lines, "", f"{drop} `{result['command']}`"])


def format_default_build(result: dict[str, Any]) -> str:
    """Return the table of the default build, with its scores on the test images."""
    figures, baseline = result["figures"], result["samples"]["default"]["trials"][0]
    drop_low, drop_high = figures["test_drop_ci95"]
    processor = result["samples"]["default"].get("environment", {}).get("processor", "")
    scores = (
        f"Baseline {baseline['size_bytes'] / 1e6:.2f} MB. On the {figures['test_images']:,} test images: baseline "
        f"{figures['baseline_test_score']:.4f}, winner "
        f"{figures['baseline_test_score'] - figures['test_drop']:.4f} "
        f"({figures['test_drop'] * 100:.2f} points lower; 95 %: {drop_low * 100:.2f} to {drop_high * 100:.2f}). "
        f"{figures['seconds'] / 60:.1f} minutes on two cores"
    )
    return f"{format_default_table(result)}\n\n{scores}" + (f" ({processor})." if processor else ".")


CLAIMS = {
    "coverage": "{architectures} architectures pruned by 30 and 50 %: {pass_ratio:.0%} pass (exact at every node, "
    "trained, exported with parity); torch-pruning {torch_pruning_pass_ratio:.0%} of {torch_pruning_architectures}; "
    "{silent_no_ops} silently unpruned",
    "predictor": "{networks} held-out pruned networks: the error of the predicted latency is "
    "{median_error_ratio:.1%} at the median and {p90_error_ratio:.1%} at the 90th percentile",
    "quantization": "{architectures} networks on 10,000 test images: a score drop of at most "
    "{worst_score_drop:.4f}; {int8_shipped_ratio:.0%} ship int8, {int8_faster_ratio:.0%} are faster, "
    "{shipped_slower_than_float} slower than float "
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
    "{shipped_slower_than_parent} of them slower in a second A/B",
    "verdicts": "{equal_files_compared} A/B comparisons of a file with its copy: {false_verdict_ratio:.1%} judged "
    "different; 5 % more work was detected in {found_5_percent_ratio:.0%} of {planted_compared}",
    "memory": "peak memory compared with known weights and activations: an error of at most {worst_error_ratio:.1%} "
    "({networks} networks)",
    "importance": "first-order Taylor keeps {gain_over_random:.3f} more of the score than random channels; best in "
    "this comparison: {best_method}",
    "latency_tables": "widths are chosen by measured latency in {tables} of {architectures} architectures; in the "
    "others by counted work",
    "quick_builds": "{networks} networks that nobody chose, built with --quick: "
    "{int8_shipped_or_smaller_ratio:.0%} ship a file that is smaller than its float32 counterpart and not slower; the "
    "median is {median_size_ratio:.1f} times smaller and {median_speed_ratio:.2f} times faster than the baseline",
    "busy_cores": "while a quick build trains, {busy_ratio:.0%} of {cores} cores are busy: "
    "{busy_ratio_2_trainings:.0%} with two trainings at a time, {busy_ratio_1_trainings:.0%} with one left",
}
"""The claim that each benchmark supports, with the names of its figures."""


def format_claims() -> str:
    """Return the list of the other benchmarks' claims."""
    lines = []
    for name, text in CLAIMS.items():
        result = load_result(name)
        if result is not None:
            claim = text.format(**result["figures"])
            lines.append(f"- `benchmarks/{name}.py`: {claim}.")
    return "\n".join(lines)


def format_workloads(result: dict[str, Any]) -> str:
    """Return the table of the ready tasks: the teacher, what edgeopt makes of it, and the best file of each peer.

    Ratios are to the teacher's file; scores are on held-out data, with the loss in points of 0.01.
    """
    lines = [
        "| task | made by | file | smaller | faster | held-out score | points of 0.01 lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in result["tasks"]:
        teacher = next(row for row in task["rows"] if row["name"] == "teacher")
        name = f"`{task['task']}` for the {task['target']}"
        for row in task["rows"]:
            lines.append(f"| {name} | {_workload_cells(row, teacher)} |")
            name = ""
    minutes = ", ".join(
        f"{task['task']} {row['seconds'] / 60:.0f}"
        for task in result["tasks"]
        for row in task["rows"]
        if row["name"] == "edgeopt"
    )
    processors = {describe_processor(task["choice"]["environment"]) for task in result["tasks"]}
    where = f"Minutes of the builds on two cores of {' and '.join(sorted(processors))}: {minutes}."
    return "\n".join([*lines, "", f"{where} `{result['command']}`"])


def describe_processor(environment: dict[str, Any]) -> str:
    """Return a processor's name and what speeds up int8 and bfloat16 there."""
    known = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX"}
    found = [text for feature, text in known.items() if feature in environment["features"]]
    return f"an {environment['processor']} with {', '.join(found) or 'neither VNNI nor AMX'}"


def _workload_cells(row: dict[str, Any], teacher: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['name']} | {row['failed']} | | | |"
    key = "heldout_score" if "heldout_score" in row else "selection_score"
    size = row["size_bytes"]
    shown = f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    cells = [row["name"], shown]
    if row is teacher:
        cells += ["", "", f"{row[key]:.4f}", ""]
    else:
        cells += [
            format_ratio(teacher["size_bytes"] / size), format_ratio(1 / row["latency_ratio"]), f"{row[key]:.4f}",
            f"{100 * (teacher[key] - row[key]):.2f}",
        ]  # fmt: skip
    return " | ".join(cells)


TABLES = {
    "README.md": ("default-table",),
    "benchmarks/README.md": ("claims", "default-build", "workloads"),
}
"""Which tables each file has."""


def format_tables() -> dict[str, str]:
    """Return every table by the name of its markers; those without results are missing."""
    build = load_result("default_build")
    tables = {"claims": format_claims()}
    if build is not None:
        tables |= {"default-table": format_default_table(build), "default-build": format_default_build(build)}
    if (workloads := load_result("workloads")) is not None:
        tables["workloads"] = format_workloads(workloads)
    return tables


def replace_tables(text: str, tables: dict[str, str]) -> str:
    """Return a text with what is between the markers of each table replaced.

    Raises:
        click.ClickException: a marker is missing.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin (written by tools/readme_figures.py) -->", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            raise click.ClickException(f"the markers of the table '{name}' are missing: {begin} and {end}.")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


@click.command()
@click.option("--check", is_flag=True, help="Fail if a file differs; write nothing.")
def main(check: bool) -> None:
    """Write the tables into README.md and benchmarks/README.md, or check them."""
    found = format_tables()
    for name, wanted in TABLES.items():
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = replace_tables(old, {table: found[table] for table in wanted if table in found})
        if check and new != old:
            raise click.ClickException(f"tables in {name} differ from benchmarks/results: run tools/readme_figures.py.")
        if not check:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

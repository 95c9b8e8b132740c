r"""Run a folder of users' cases through the command, and judge each against what is expected.

    python benchmarks/cases.py FOLDER [--only NAME ...] [--seconds 600] [--out benchmarks/results/cases.json]

Each sub-folder of FOLDER is a case: a ``README`` with a line ``Command: ...``, and the files that it needs. Commands
are separated by ``;``; those in parentheses after ``and:`` are run too; ``A && B`` runs B if A succeeds. Each case runs
in a fresh copy, one after the other, and each command with a fresh workspace and a time limit.

What is right is in ``expected.toml`` of FOLDER, or if there is none in ``benchmarks/cases/NAME.toml`` with FOLDER's
name. For a case it lists the outcomes that are accepted, in ``accept``, or for each of its commands in ``run``::

    [[02-binary-sigmoid.accept]]
    exit = 0
    must = ["accuracy"]             # regular expressions that the output matches, line breaks read as blanks
    must_not = ["0\\.5156"]
    facts = { "baseline.score" = [0.99, 1.0], "winner.number" = "any" }  # of edgeopt-out/choice.json

A fact is a value, a range, ``"any"`` for one that is there, or ``"none"``. A command that is not in the README is
``command`` of a ``run``. An output with a traceback is never right.

Figures: ``cases``, ``right``, ``tracebacks`` (commands), ``silent_wrong`` (commands that ended with 0 though their
result is not one that is accepted). The exit code is 1 if a case is not right.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
NEVER = (r"Traceback \(most recent call last\)", "bug in edgeopt")
TIMED_OUT = 124
"""Exit code of a command that was stopped, as of the program ``timeout``."""
SHOWN_CHARACTERS = 90

Row = dict[str, Any]


def commands_of(readme: str) -> list[str]:
    """Return the commands of a case's README."""
    line = re.search(r"^Command:(.*)$", readme, re.MULTILINE)
    if line is None:
        raise click.UsageError("a case's README needs a line 'Command: ...'.")
    main, *notes = re.split(r"\(", line[1])
    also = [note.removeprefix("and:").rstrip(") ") for note in map(str.strip, notes) if note.startswith("and:")]
    return [command.strip() for part in (main, *also) for command in part.split(";") if command.strip()]


def run_command(command: str, folder: Path, seconds: float) -> tuple[int, str, float]:
    """Run a command of a case; return its exit code, its output and the seconds it took.

    All processes that it started end with it.
    """
    shutil.rmtree(folder / ".edgeopt", ignore_errors=True)
    shutil.rmtree(folder / "edgeopt-out", ignore_errors=True)
    start, output, code = time.perf_counter(), "", 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    for step in command.split("&&"):
        program, *arguments = shlex.split(step)
        words = {"edgeopt": [sys.executable, "-m", "edgeopt"], "python": [sys.executable]}.get(program, [program])
        process = subprocess.Popen(
            [*words, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            text, _ = process.communicate(timeout=max(1.0, start + seconds - time.perf_counter()))
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            code = TIMED_OUT
        output += text
        if code:
            break
    return code, output, time.perf_counter() - start


def find_fault(outcome: Row, code: int, output: str, choice: Any) -> str:
    """Return how a result differs from an accepted outcome; empty if it is right.

    Args:
        outcome: ``exit``, ``must``, ``must_not`` and ``facts``, as the table of expectations has them.
        code: The exit code.
        output: What was printed, to stdout and stderr.
        choice: ``choice.json`` of the build, None if there is none.
    """
    text = " ".join(output.split())
    if code != outcome.get("exit", 0):
        return f"exit {code}, not {outcome.get('exit', 0)}"
    for pattern in (*NEVER, *outcome.get("must_not", ())):
        if re.search(pattern, text):
            return f"the output has '{pattern}'"
    for pattern in outcome.get("must", ()):
        if not re.search(pattern, text):
            return f"the output lacks '{pattern}'"
    for path, wanted in outcome.get("facts", {}).items():
        found = find_fact(choice, path)
        if not is_fact(found, wanted):
            return f"{path} is {found}, not {wanted}"
    return ""


def find_fact(document: Any, path: str) -> Any:
    """Return a value of nested JSON by its dotted path, None if it is not there."""
    for key in path.split("."):
        if isinstance(document, list) and key.isdigit() and int(key) < len(document):
            document = document[int(key)]
        else:
            document = document.get(key) if isinstance(document, dict) else None
    return document


def is_fact(found: Any, wanted: Any) -> bool:
    """Tell whether a value is the one that is wanted, in the range, there (``any``), or not there (``none``)."""
    if wanted in ("any", "none"):
        return (found is not None) == (wanted == "any")
    if isinstance(wanted, list):
        return isinstance(found, int | float) and wanted[0] <= found <= wanted[1]
    return bool(found == wanted)


def run_case(case: Path, expected: Row, seconds: float) -> list[Row]:
    """Run the commands of a case in a copy of its folder; return a row for each."""
    commands = commands_of((case / "README").read_text("utf-8"))
    runs: list[Row] = expected.get("run") or [{"accept": expected.get("accept", [])}] * len(commands)
    rows = []
    with tempfile.TemporaryDirectory(prefix="case-") as name:
        folder = Path(name) / case.name
        shutil.copytree(case, folder)
        for number, run in enumerate(runs):
            command = run.get("command") or commands[number]
            code, output, elapsed = run_command(command, folder, seconds)
            document = folder / "edgeopt-out" / "choice.json"
            choice = json.loads(document.read_text("utf-8")) if document.is_file() else None
            faults = [find_fault(outcome, code, output, choice) for outcome in run["accept"]]
            right = "" in faults
            lines = output.strip().splitlines() or [""]
            rows.append(
                {
                    "case": case.name, "command": command, "exit": code, "seconds": round(elapsed, 1), "right": right,
                    "traceback": any(re.search(pattern, output) for pattern in NEVER),
                    "silent_wrong": code == 0 and not right,
                    "fault": "" if right else "; or ".join(dict.fromkeys(faults)) or "nothing is expected of it",
                    "last_line": lines[-1], "output": output,
                }
            )  # fmt: skip
    return rows


def compute_figures(rows: list[Row]) -> dict[str, int]:
    """Return the figures of all commands."""
    cases = dict.fromkeys(row["case"] for row in rows)
    return {
        "cases": len(cases),
        "right": sum(all(row["right"] for row in rows if row["case"] == case) for case in cases),
        "tracebacks": sum(row["traceback"] for row in rows),
        "silent_wrong": sum(row["silent_wrong"] for row in rows),
    }


def read_expected(folder: Path) -> Row:
    """Read what is expected of the cases in a folder."""
    for path in (folder / "expected.toml", ROOT / "benchmarks" / "cases" / f"{folder.resolve().name}.toml"):
        if path.is_file():
            return tomllib.loads(path.read_text("utf-8"))
    raise click.UsageError(f"{folder} has no expected.toml, and benchmarks/cases has none of its name.")


def show(row: Row) -> None:
    """Print a command's result as a row of the table, and its fault."""
    words = "right" if row["right"] else "SILENTLY WRONG" if row["silent_wrong"] else "wrong"
    trace = "traceback" if row["traceback"] else "-"
    last = row["last_line"][:SHOWN_CHARACTERS]
    click.echo(f"{row['case']:<28} {words:<14} {row['exit']:>4} {row['seconds']:>6.0f} s  {trace:<9}  {last}")
    if row["fault"]:
        click.echo(f"{'':<28} {row['fault']}")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, metavar="NAME", help="A case, or the start of its name; may be repeated.")
@click.option("--seconds", default=600.0, show_default=True, help="Time limit of a command.")
@click.option("--out", type=click.Path(path_type=Path), help="Write rows and figures as JSON.")
def main(folder: Path, only: tuple[str, ...], seconds: float, out: Path | None) -> None:
    """Run the cases of FOLDER."""
    expected, rows = read_expected(folder), []
    for case in sorted(path.parent for path in folder.glob("*/README")):
        if only and not case.name.startswith(only):
            continue
        for row in run_case(case, expected.get(case.name, {}), seconds):
            rows.append(row)
            show(row)
    figures = compute_figures(rows)
    click.echo("  ".join(f"{name} {value}" for name, value in figures.items()))
    if out is not None:
        machine = {"machine": platform.machine(), "system": platform.platform(), "cores": os.cpu_count()}
        document = {"command": shlex.join(sys.argv), "machine": machine, "figures": figures, "rows": rows}
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if figures["right"] == figures["cases"] else 1)


if __name__ == "__main__":
    main()

"""How many cores the training phase of a build keeps busy.

    python benchmarks/busy_cores.py [--quick] [--task fashion] --json benchmarks/results/busy_cores.json

Runs ``edgeopt build`` in a fresh workspace and reads the processor time of all its processes from ``/proc`` (Linux)
several times a second. The training phase is the time in which at least one training runs, by the build's debug log.
``busy_ratio`` is the processor time in that phase over its wall time and the number of cores. Nothing else may run.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from edgeopt.pipeline.torch_process.pool import available_cores

SAMPLE_SECONDS = 0.25
BEGIN = re.compile(r"torch process (\d+): TrainJob TrainJob\(.*threads=(\d+)")
END = re.compile(r"torch process (\d+): TrainJob took")
DIED = re.compile(r"torch process (\d+) ended")


class ProcessTree:
    """The processor time of a process and its descendants, also of those that have ended.

    Args:
        root: Id of the process.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.seconds: dict[int, float] = {}

    def cpu_seconds(self) -> float:
        """Return the processor time so far; a process counts until its last sample."""
        parents, seconds = {}, {}
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(path.name)
            parents[pid] = int(fields[1])
            seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        for pid in parents:
            above: int | None = pid
            while above is not None and above != self.root:
                above = parents.get(above)
            if above == self.root:
                self.seconds[pid] = seconds[pid]
        return sum(self.seconds.values())


class Phases:
    """Which trainings run, by the lines of the debug log; as many threads may use it."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}
        """Process to the threads of its training."""

    def read_all(self, lines: Iterable[str]) -> None:
        """Take all lines of the log, as they come."""
        for line in lines:
            self.read(line)

    def read(self, line: str) -> None:
        """Take one line of the log."""
        if found := BEGIN.search(line):
            self.running[found[1]] = int(found[2])
        elif found := END.search(line) or DIED.search(line):
            self.running.pop(found[1], None)


def summarize(samples: list[dict[str, Any]], cores: int) -> dict[str, float]:
    """Return the busy share of the cores while something trained, for all such times and by number of trainings.

    Args:
        samples: Of ``seconds`` (since the start), ``cpu_seconds`` and ``threads`` (one number per running training).
        cores: Of the machine.
    """
    wall: dict[str, float] = {}
    busy: dict[str, float] = {}
    for before, after in itertools.pairwise(samples):
        if not before["threads"] or len(before["threads"]) != len(after["threads"]):
            continue  # nothing trains, or a training began or ended here
        for name in ("busy_ratio", f"busy_ratio_{len(before['threads'])}_trainings"):
            wall[name] = wall.get(name, 0.0) + after["seconds"] - before["seconds"]
            busy[name] = busy.get(name, 0.0) + after["cpu_seconds"] - before["cpu_seconds"]
    figures = {name: busy[name] / wall[name] / cores for name in wall}
    return {**figures, "training_seconds": wall.get("busy_ratio", 0.0), "cores": cores}


def watch(command: list[str], folder: Path) -> list[dict[str, Any]]:
    """Run a build, and return the samples."""
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    phases, tree = Phases(), ProcessTree(process.pid)
    reader = threading.Thread(target=phases.read_all, args=(process.stderr,), daemon=True)
    reader.start()
    begin, samples = time.perf_counter(), []
    while process.poll() is None:
        cpu, seconds = tree.cpu_seconds(), time.perf_counter() - begin
        samples.append({"seconds": seconds, "cpu_seconds": cpu, "threads": sorted(phases.running.values())})
        time.sleep(SAMPLE_SECONDS)
    reader.join()
    if process.returncode not in (0, 3):
        raise click.ClickException(f"the build ended with exit code {process.returncode}")
    return samples


@click.command()
@click.option("--quick", is_flag=True, help="Build with --quick.")
@click.option("--task", default="fashion", show_default=True)
@click.option("--target", default="phone", show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, task: str, target: str, out: Path) -> None:
    """Watch a build, and write figures and raw samples."""
    build = [sys.executable, "-m", "edgeopt", "build", task, "--target", target, "--verbose", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        samples = watch([*build, "--quick"] if quick else build, Path(folder))
    figures = summarize(samples, available_cores())
    result = {
        "figures": figures,
        "samples": samples,
        "environment": {"platform": platform.platform(), "python": platform.python_version(), "load": os.getloadavg()},
        "command": "python " + shlex.join(sys.argv),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

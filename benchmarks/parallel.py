"""What a second worker of a Ray cluster saves, and whether the result stays the same.

    python benchmarks/parallel.py [--quick] [--task fashion] [--repeats 1] --json benchmarks/results/parallel.json

Builds in fresh workspaces on clusters of this machine: with one core, then with two, one core for each training. The
first build's timings are replayed in the second one (``tools/replay``), because widths depend on them. The training
phase is the time in which at least one training runs, by the build's debug log (see ``busy_cores``).
``two_workers_time_ratio`` is that phase with two workers over that with one, the median of all repeats.
``same_winner`` compares the winners' recipes, and ``same_file`` their files, which differ if the short trial before the
trainings chose another precision. ``core_busy_ratio`` is the processor time of the build and of the cluster in the
phase, over its wall time and the two cores.
Nothing else may run, and the machine needs three cores or more for figures that aren't disturbed by the build itself.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.busy_cores import SAMPLE_SECONDS, Phases, ProcessTree, summarize

ROOT = Path(__file__).parent.parent
REPLAY = ROOT / "tools" / "replay"
STORE_BYTES = 200_000_000
"""Of Ray's object store; the workspace is on the same machine, so almost nothing goes through it."""
HEAD = f"""
import sys
import ray
found = ray.init(num_cpus=int(sys.argv[1]), num_gpus=0, include_dashboard=False, object_store_memory={STORE_BYTES},
                 _temp_dir=sys.argv[2], log_to_driver=False, logging_level="ERROR")
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@contextmanager
def running_cluster(cores: int, variables: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Run a cluster of one node for the length of a block; give its address, and the process that it belongs to."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-c", HEAD, str(cores), folder]
        head = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | variables,
        )  # fmt: skip
        assert head.stdin is not None
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        try:
            if not address:
                raise click.ClickException("the Ray cluster did not start; pip install 'edgeopt[ray]'?")
            yield address, head.pid
        finally:
            head.stdin.close()
            head.wait()


def watch_on_cluster(command: list[str], folder: Path, head: int, variables: dict[str, str]) -> list[dict[str, Any]]:
    """Run a build whose trainings run on a cluster, and return samples as ``busy_cores`` has them."""
    build = subprocess.Popen(
        command, cwd=folder, env=os.environ | variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert build.stderr is not None
    phases, trees = Phases(), (ProcessTree(build.pid), ProcessTree(head))
    reader = threading.Thread(target=phases.read_all, args=(build.stderr,), daemon=True)
    reader.start()
    begin, samples = time.perf_counter(), []
    while build.poll() is None:
        cpu, seconds = sum(tree.cpu_seconds() for tree in trees), time.perf_counter() - begin
        samples.append({"seconds": seconds, "cpu_seconds": cpu, "threads": sorted(phases.running.values())})
        time.sleep(SAMPLE_SECONDS)
    reader.join()
    if build.returncode not in (0, 3):
        raise click.ClickException(f"the build ended with exit code {build.returncode}")
    return samples


def winner_of(out: Path) -> dict[str, Any] | None:
    """Return the recipe and the hash of a build's winner."""
    choice = json.loads((out / "choice.json").read_text(encoding="utf-8"))
    if choice["winner"] is None:
        return None
    trial = next(one for one in choice["trials"] if one["number"] == choice["winner"]["number"])
    return {"recipe": trial["recipe"], "sha256": trial["sha256"]}


def build_on_cluster(workers: int, options: list[str], timings: Path) -> dict[str, Any]:
    """Build with that many workers, and return samples and winner; one worker records timings, two replay them."""
    variables = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    replay = {
        "PYTHONPATH": os.pathsep.join([str(REPLAY), variables["PYTHONPATH"]]),
        "EDGEOPT_REPLAY_FOLDER": str(timings),
        "EDGEOPT_REPLAY_MODE": "record" if workers == 1 else "replay",
    }
    with tempfile.TemporaryDirectory() as name, running_cluster(workers, variables) as (address, head):
        folder = Path(name)
        command = [sys.executable, "-m", "edgeopt", "build", *options, "--ray", address, "--ray-cores", "1"]
        samples = watch_on_cluster([*command, "--verbose", "--quiet"], folder, head, variables | replay)
        return {"workers": workers, "samples": samples, "winner": winner_of(folder / "edgeopt-out")}


def recipe_of(build: dict[str, Any]) -> Any:
    """Return the recipe of a build's winner; None if there is none."""
    return build["winner"] and build["winner"]["recipe"]


def figures_of(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Return the figures.

    Args:
        pairs: For each repeat, the build with one worker and the one with two.
    """
    phases = [tuple(summarize(build["samples"], cores=2) for build in pair) for pair in pairs]
    ratios = [two["training_seconds"] / one["training_seconds"] for one, two in phases]
    return {
        "two_workers_time_ratio": statistics.median(ratios),
        "two_workers_time_ratios": ratios,
        "same_winner": all(recipe_of(one) == recipe_of(two) for one, two in pairs),
        "same_file": all(one["winner"] == two["winner"] for one, two in pairs),
        "core_busy_ratio": statistics.median(two["busy_ratio"] for _, two in phases),
        "one_worker_training_seconds": statistics.median(one["training_seconds"] for one, _ in phases),
        "repeats": len(pairs),
    }


@click.command()
@click.option("--quick", is_flag=True, help="Build with --quick.")
@click.option("--task", default="fashion", show_default=True)
@click.option("--target", default="phone", show_default=True)
@click.option("--repeats", default=1, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), required=True)
def main(quick: bool, task: str, target: str, repeats: int, out: Path) -> None:
    """Build with one worker and with two, and write figures and raw samples."""
    options = [task, "--target", target, *(["--quick"] if quick else [])]
    pairs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as timings:
            pairs.append(tuple(build_on_cluster(workers, options, Path(timings)) for workers in (1, 2)))
    figures = figures_of([(one, two) for one, two in pairs])
    result = {
        "figures": figures,
        "samples": pairs,
        "environment": {"platform": platform.platform(), "python": platform.python_version(), "load": os.getloadavg()},
        "command": "python " + shlex.join(sys.argv),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

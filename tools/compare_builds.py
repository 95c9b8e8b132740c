"""Show that two checkouts build the same: the same candidates, the same files, the same winner.

python tools/compare_builds.py BEFORE AFTER --work FOLDER [--renamed OLD=NEW ...] [-- BUILD OPTIONS]

Two fresh builds may differ, because widths depend on measured times. So the first checkout builds while every timing
that a worker gives is recorded, and the second one builds with these timings replayed (``tools/replay``). Training is
the same for the same seed on the same processor. Both checkouts run with the Python that runs this script.

The exit code is 0 where all trials have the same recipe and sha256 and the winner is the same, else 1. A recording in
FOLDER is used again, so that a second comparison with the same first checkout takes half the time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

REPLAY = Path(__file__).parent / "replay"


def build(checkout: Path, folder: Path, mode: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Run a build of one checkout in a folder of its own and return its ``choice.json``."""
    place = folder / mode
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    timings = folder / "timings"
    variables = {
        "PYTHONPATH": os.pathsep.join([str(REPLAY), str(checkout)]),
        "EDGEOPT_REPLAY_FOLDER": str(timings),
        "EDGEOPT_REPLAY_MODE": mode,
    }
    command = [sys.executable, "-m", "edgeopt", "build", "--out", "out", "--workers", "2", *options]
    begin = time.monotonic()
    with (place / "log.txt").open("wb") as log:
        done = subprocess.run(
            command,
            cwd=place,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    click.echo(f"{mode}: exit code {done.returncode} after {time.monotonic() - begin:.0f} s ({checkout})")
    if done.returncode not in (0, 3):
        raise click.ClickException(f"the build failed; see {place / 'log.txt'}")
    (place / "done").touch()
    return read(place)


def read(place: Path) -> dict[str, Any]:
    """Return the ``choice.json`` of a finished build."""
    choice: dict[str, Any] = json.loads((place / "out" / "choice.json").read_text(encoding="utf-8"))
    return choice


def renamed(value: Any, names: dict[str, str]) -> Any:
    """Return a recipe with old field names and tags replaced by their new ones."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def without_keys(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with its parent as whether there is one: keys name versions of the code's own records."""
    return {**recipe, "parent": recipe["parent"] is not None}


def differences(before: dict[str, Any], after: dict[str, Any], names: dict[str, str]) -> list[str]:
    """Return a line for each trial that differs, and for the winner."""
    found = []
    old, new = before["trials"], after["trials"]
    if len(old) != len(new):
        found.append(f"{len(old)} trials before, {len(new)} after")
    for one, other in zip(old, new, strict=False):
        number = one["number"]
        if renamed(without_keys(one["recipe"]), names) != without_keys(other["recipe"]):
            found.append(f"trial {number}: recipe {json.dumps(one['recipe'])} became {json.dumps(other['recipe'])}")
        found += [
            f"trial {number}: {key} {one.get(key)} became {other.get(key)}"
            for key in ("status", "sha256", "size_bytes", "score", "macs", "parameters")
            if one.get(key) != other.get(key)
        ]
    winners = [None if choice["winner"] is None else choice["winner"]["sha256"] for choice in (before, after)]
    if winners[0] != winners[1]:
        found.append(f"the winner {winners[0]} became {winners[1]}")
    return found


@click.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True))
@click.argument("after", type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--work", type=click.Path(path_type=Path, resolve_path=True), required=True, help="Folder for both.")
@click.option(
    "--renamed", "pairs", multiple=True, metavar="OLD=NEW", help="A field or tag of recipes that was renamed."
)
@click.option("--only-record", is_flag=True, help="Build the first checkout and stop.")
def main(
    before: Path, after: Path, options: tuple[str, ...], work: Path, pairs: tuple[str, ...], only_record: bool
) -> None:
    """Build with two checkouts and compare all their trials."""
    timings = work / "timings"
    if not (work / "record" / "done").exists():
        shutil.rmtree(timings, ignore_errors=True)
        timings.mkdir(parents=True)
        build(before, work, "record", options)
    if only_record:
        return
    for old in [*timings.glob("*.replayed"), *timings.glob("*.missed")]:
        old.unlink()
    second = build(after, work, "replay", options)
    missed = sorted(path.stem for path in timings.glob("*.missed"))
    found = differences(read(work / "record"), second, dict(pair.split("=", 1) for pair in pairs))
    click.echo(f"{len(second['trials'])} trials, {len(missed)} timings that the recording lacks: {', '.join(missed)}")
    for line in found:
        click.echo(line)
    winner = second["winner"]
    click.echo(f"winner: {winner['sha256'] if winner else 'none'}")
    click.echo("the builds differ" if found else "the builds are the same")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

"""``edgeopt show N``: everything that the ledger holds about one trial."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.history import find_build, open_ledger, workspace_option


@click.command(name="show")
@click.argument("number", metavar="N", type=int)
@click.option("--build", type=int, metavar="N", help="Number of the build (default: the newest).")
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="Print the trial's record, with raw samples.")
def command(number: int, build: int | None, workspace: Path, as_json: bool) -> None:
    """Show trial number N: its recipe, file, timings and parity, or its traceback if it failed."""
    from rich.console import Console

    from edgeopt.errors import InputError, WorkspaceError
    from edgeopt.records.codec import to_json
    from edgeopt.report.ledger_text import print_trial

    ledger = open_ledger(workspace)
    try:
        build = find_build(ledger, build)
        stored = ledger.trials(build)
        trials = {trial.number: trial for trial in stored.intact}
    finally:
        ledger.close()
    if number in stored.damaged:
        raise WorkspaceError(stored.damaged[number])
    if number not in trials:
        held = f"{len(trials)} trials, numbered {min(trials)} to {max(trials)}" if trials else "no trials yet"
        raise InputError(f"build {build} has no trial {number}; it holds {held}. `edgeopt history {build}` lists them.")
    if as_json:
        click.echo(to_json(trials[number]))
    else:
        print_trial(trials[number], trials.get(0), Console())

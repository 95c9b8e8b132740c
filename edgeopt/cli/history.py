"""``edgeopt history``: the builds in a workspace's ledger, and the trials of one build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import show_error

if TYPE_CHECKING:
    from edgeopt.store.ledger import Ledger

workspace_option = click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    default=Path(".edgeopt"),
    show_default=True,
    metavar="DIR",
    help="The build's workspace.",
)


def open_ledger(workspace: Path) -> Ledger:
    """Open the ledger of a workspace for reading.

    Raises:
        WorkspaceError: the workspace has no ledger.
    """
    from edgeopt.errors import WorkspaceError
    from edgeopt.store.ledger import Ledger
    from edgeopt.store.workspace import Workspace

    file = Workspace(workspace).ledger_file
    if not file.is_file():
        raise WorkspaceError(f"{workspace} has no ledger. Give the build's workspace with --workspace DIR.")
    return Ledger(file)


def find_build(ledger: Ledger, build: int | None) -> int:
    """Return the number of a build in the ledger: the given one, or the newest for None.

    Raises:
        InputError: the ledger does not hold it.
    """
    from edgeopt.errors import InputError

    known = [number for number, *_ in ledger.builds()]
    if not known:
        raise InputError(f"the ledger {ledger.path} holds no builds yet.")
    if build is None:
        return known[0]
    if build not in known:
        raise InputError(f"there is no build {build} in {ledger.path}; it holds {', '.join(map(str, sorted(known)))}.")
    return build


@click.command(name="history")
@click.argument("build", type=int, required=False)
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(build: int | None, workspace: Path, as_json: bool) -> None:
    """List the builds of a workspace, or the trials of build number BUILD."""
    from rich.console import Console

    from edgeopt.records.codec import to_json
    from edgeopt.report.ledger_text import print_builds, print_trials

    ledger = open_ledger(workspace)
    try:
        builds = ledger.builds()
        stored = None if build is None else ledger.trials(find_build(ledger, build))
    finally:
        ledger.close()
    trials = None if stored is None else stored.intact
    for damaged in () if stored is None else stored.damaged.values():
        show_error(damaged, label="left out: ")
    if as_json:
        fields = ("build", "task", "target", "started_at", "trials")
        rows = [dict(zip(fields, row, strict=True)) for row in builds]
        click.echo(to_json(rows if trials is None else trials))
    elif trials is None:
        print_builds(builds, Console())
    else:
        print_trials(trials, Console())

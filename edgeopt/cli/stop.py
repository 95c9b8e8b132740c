"""``edgeopt stop``: end the build that runs in a workspace, with the best file so far."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.history import workspace_option


@click.command(name="stop")
@workspace_option
def command(workspace: Path) -> None:
    """End the build that runs in the workspace with the best file so far, as --time-limit does.

    Trainings end at once, and keep their last epoch: the same build command goes on from there. (Several processes that
    train one network together finish their epoch.) A network that keeps the limit on the score already is tried as it
    is. What is being measured is measured to its end, and the bundle is written, usually within a minute or two.
    (Ctrl-C ends at once, without a bundle.)
    """
    from edgeopt.errors import InputError
    from edgeopt.store.workspace import Workspace

    place = Workspace(workspace)
    process = place.running_build()
    if process is None:
        raise InputError(f"no build runs in {workspace}. Give the build's workspace with --workspace DIR.")
    place.stop_file.touch()
    click.echo(f"the build in {workspace} (process {process}) ends with the best file so far")

"""Run ``edgeopt build`` as a user does. In: its task and options. Out: what ``--json`` prints, and the wall time."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

BUILT_CODES = (0, 3)
"""Exit codes of a build that came to its end; 3 if nothing keeps the limits."""


class FinishedBuild(NamedTuple):
    """A build that came to its end."""

    document: dict[str, Any]
    """Its ``choice.json``, or the ``targets.json`` of several targets."""
    seconds: float
    """Wall time."""


def run_build(words: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> FinishedBuild:
    """Run a build in a folder.

    Args:
        words: What follows ``edgeopt build``, without ``--json``.
        folder: Where it runs.
        variables: Further environment variables.

    Raises:
        click.ClickException: it failed; its messages are on stderr.
    """
    command = [sys.executable, "-m", "edgeopt", "build", *words, "--json"]
    environment = os.environ | (variables or {})
    if environment.get("EDGEOPT_DATA"):  # may be relative to the folder of the benchmark
        environment["EDGEOPT_DATA"] = str(Path(environment["EDGEOPT_DATA"]).resolve())
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode not in BUILT_CODES:
        raise click.ClickException(f"{shlex.join(command)} ended with code {done.returncode}")
    return FinishedBuild(json.loads(done.stdout), seconds)

"""``edgeopt targets``: list, show, create and calibrate target profiles."""

from __future__ import annotations

import re
from pathlib import Path

import click

from edgeopt.cli.calibrate import calibrate
from edgeopt.config.calibrations import calibration_path
from edgeopt.config.limits import BYTES_PER_MB
from edgeopt.config.profiles import (
    NAME_PATTERN,
    find_profile,
    list_profiles,
    own_folder,
    read_profile,
    shipped_folder,
)
from edgeopt.errors import ConfigError, WorkspaceError
from edgeopt.records.budget import Budget
from edgeopt.records.codec import to_json


@click.group(name="targets", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, show, create and calibrate target profiles; without a command, list them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_targets)


command.add_command(calibrate)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_targets(as_json: bool) -> None:
    """List the shipped targets and those in ./targets."""
    profiles = list_profiles()
    if as_json:
        click.echo(to_json([profile for profile, _ in profiles]))
        return
    width = max(len(profile.name) for profile, _ in profiles)
    for profile, path in profiles:
        source = "" if path.parent == shipped_folder() else f"  ({path})"
        click.echo(f"{profile.name:<{width}}  {profile.title}{source}")
        click.echo(f"{'':<{width}}  {describe_limits(profile.limits)}")
        calibration = calibration_path(str(path))
        if calibration.is_file():
            click.echo(f"{'':<{width}}  calibrated: {calibration}")


@command.command(name="show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the values only, as one JSON document.")
def show_target(name: str, as_json: bool) -> None:
    """Print a target's file, with the reason for each value. NAME may be a path."""
    path = find_profile(name)
    profile = read_profile(path)
    click.echo(to_json(profile) if as_json else path.read_text(encoding="utf-8"), nl=as_json)


@command.command()
@click.argument("name")
@click.option("--from", "source", default="phone", show_default=True, metavar="NAME",
              help="The target to copy: a name or a path.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="A folder, or a path of NAME.toml (default: ./targets).")
def new(name: str, source: str, out: Path | None) -> None:
    """Write NAME.toml, a copy of another target for you to edit."""
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(f"'{name}' can't be a target's name: use lower-case letters, digits, '-' and '_'.")
    path = out if out is not None and out.suffix == ".toml" else (out or own_folder()) / f"{name}.toml"
    if path.stem != name:
        raise ConfigError(f"{path} must be called {name}.toml: a target's name is its file's name.")
    if (shipped_folder() / path.name).exists():
        raise ConfigError(f"'{name}' is a target that edgeopt ships. Choose another name, such as 'my-{name}'.")
    if path.exists():
        raise ConfigError(f"{path} already exists and was not changed. Choose another name.")
    text = _rename(find_profile(source), name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error.strerror}.") from None
    shown = name if path.parent == own_folder() else path
    click.echo(f"wrote {path}: edit it, then run `edgeopt build --target {shown}`")


def describe_limits(budget: Budget) -> str:
    """Return a budget in one line, without waived limits."""
    runtime = budget.runtime_size_bytes
    with_it = "" if runtime is None else f" with the runtime's {runtime / BYTES_PER_MB:g} MB"
    batch = "" if budget.batch_size == 1 else f" for a batch of {budget.batch_size}"
    parts = (
        (budget.max_latency_ms, 1.0, f"p{budget.latency_percentile} ≤ %g ms{batch}"),
        (budget.min_throughput_per_s, 1.0, "≥ %g samples/s"),
        (budget.max_peak_memory_bytes, 1e6, "memory ≤ %g MB"),
        (budget.max_size_bytes, 1e6, f"{budget.size_metric}{with_it} ≤ %g MB"),
        (budget.min_score, 1.0, "score ≥ %g"),
        (budget.max_score_drop, 1.0, "score drop ≤ %g"),
        (budget.max_class_drop, 1.0, "drop of any class ≤ %g"),
        (budget.max_flip_ratio, 1.0, "changed answers ≤ %g"),
    )
    return " · ".join(text % (value / unit) for value, unit, text in parts if value is not None) or "no limits"


def _rename(path: Path, name: str) -> str:
    """Return a profile's text under another name, with a new comment at the top."""
    original = read_profile(path)
    text = path.read_text(encoding="utf-8")
    while text.startswith(("#", "\n")):
        text = text.partition("\n")[2]
    text = re.sub(r'(?m)^name\s*=\s*(["\']).*?\1', f'name = "{name}"', text, count=1)
    usage = f"`edgeopt build --target {name}` looks for the smallest file that keeps [limits]."
    return f"# Made from '{original.name}'. {usage}\n\n{text}"

"""``edgeopt check BUNDLE``: a finished build verified again, with an exit code for continuous integration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeopt.pipeline.check import Result

EXIT_CODES = {"passed": 0, "missed": 3, "bad": 2}
VERDICTS = {"passed": "keeps what it promises", "missed": "misses what it promises", "bad": "is not what was built"}


@click.command("check")
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--device", metavar="URI", help="Where to run; the target's device without it.")
@click.option("--target", metavar="NAME", help="Another target's name or .toml, for how to run; the limits stay.")
@click.option("--allow-fallback", multiple=True, metavar="PROVIDER", help="May run where the target's cannot.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, raw samples included.")
def command(
    bundle: Path, device: str | None, target: str | None, allow_fallback: tuple[str, ...], as_json: bool
) -> int:
    """Verify BUNDLE, the folder of a finished build: its files, its golden outputs on the device, its limits.

    Exit code 0 where all of it holds, 3 where an output or a limit is missed, 2 where the bundle is not what was built.
    """
    from edgeopt.bundle.manifest import read_manifest
    from edgeopt.cli.console import Progress
    from edgeopt.config.profiles import load_profile
    from edgeopt.device.open import device_kind, open_device
    from edgeopt.pipeline.check import check
    from edgeopt.records.codec import to_json

    profile = load_profile(target or read_manifest(bundle).target)
    where = open_device(device or profile.device)
    kind = device_kind(where.uri, profile)
    profile = profile if kind == "measured" else profile.on_stand_in
    with Progress() as progress:
        result = check(
            bundle,
            where,
            profile,
            kind=kind,
            allow_fallback=allow_fallback,
            progress=lambda text: progress("check", text),
        )
    if as_json:
        click.echo(to_json(result))
    else:
        _print(result)
    return EXIT_CODES[result.status]


def _print(result: Result) -> None:
    """Print one line a finding, and the verdict last."""
    width = max(len(finding.name) for finding in result.findings)
    for finding in result.findings:
        click.echo(f"{finding.status:6}  {finding.kind:6}  {finding.name:{width}}  {finding.text}")
    click.echo(f"{result.bundle} {VERDICTS[result.status]} on {result.device}")

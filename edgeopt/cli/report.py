"""``edgeopt report DIR``: the result of a bundle again, as text, JSON or a web page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click


@click.command(name="report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write the web page again, to FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print choice.json.")
def command(folder: Path, html: Path | None, as_json: bool) -> None:
    """Print the result of the bundle in DIR, or of the bundles of several targets.

    With --html, this version of edgeopt also makes a new page from the bundle's choice.json.
    """
    from rich.console import Console

    from edgeopt.report.document import encode, read_document
    from edgeopt.report.page import render_page
    from edgeopt.report.targets import TARGETS_FILE, print_targets, read_documents, read_targets, render_targets
    from edgeopt.report.text import print_result

    if (folder / TARGETS_FILE).is_file():
        targets = read_targets(folder)
        documents = read_documents(folder, targets)
        _write_page(html, folder, lambda: render_targets(targets, documents))
        if as_json:
            click.echo(encode(targets), nl=False)
        else:
            print_targets(targets, documents, Console(), folder)
        return
    document = read_document(folder / "choice.json")
    _write_page(html, folder, lambda: render_page(document))
    if as_json:
        click.echo(encode(document), nl=False)
    else:
        print_result(document, Console(), out=folder)


def _write_page(html: Path | None, folder: Path, render: Callable[[], str]) -> None:
    """Write a page to the file that ``--html`` names, if there is one.

    Raises:
        InputError: it is inside the bundle, or cannot be written.
    """
    from edgeopt.errors import InputError

    if html is not None:
        if html.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"--html {html} is inside the bundle, whose manifest has the hash of every file. Name a file outside."
            )
        try:
            html.write_text(render(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--html {html} cannot be written: {error.strerror}. Name another file.") from error

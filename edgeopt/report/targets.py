"""The result of a build for several targets: ``targets.json``, a page with a table and charts for each, and a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import edgeopt
from edgeopt.errors import WorkspaceError
from edgeopt.report import sentences, words
from edgeopt.report.document import Document, encode, read_document, read_part
from edgeopt.report.page import page_environment, target_view
from edgeopt.report.parts import Part
from edgeopt.report.proof import build_proof

TARGETS_FILE = "targets.json"
_SCHEMA: Literal["edgeopt/targets-1"] = "edgeopt/targets-1"


class TargetResult(Part, frozen=True, kw_only=True):
    """What came of one target."""

    target: str
    folder: str
    """Of its bundle, inside the folder of the build."""
    error: str | None = None
    """Why there is no bundle, such as a device that could not be reached."""


class TargetsDocument(Part, frozen=True, kw_only=True):
    """All targets of a build, in the order in which they were asked for."""

    schema: Literal["edgeopt/targets-1"] = _SCHEMA
    task: str
    results: tuple[TargetResult, ...]


def write_targets(out: Path, document: TargetsDocument) -> None:
    """Write ``targets.json`` and the page next to the bundles.

    Raises:
        WorkspaceError: the folder cannot be written.
        DataError: a bundle's ``choice.json`` cannot be read.
    """
    page = render_targets(document, read_documents(out, document))
    try:
        (out / "report.html").write_text(page, encoding="utf-8")
        (out / TARGETS_FILE).write_bytes(encode(document))
    except OSError as error:
        raise WorkspaceError(
            f"{out} cannot be written: {error.strerror}. The bundles of the targets inside it are complete."
        ) from error


def read_targets(out: Path) -> TargetsDocument:
    """Read ``targets.json``.

    Raises:
        DataError: see ``read_part``.
    """
    return read_part(out / TARGETS_FILE, TargetsDocument, _SCHEMA)


def read_documents(out: Path, document: TargetsDocument) -> list[Document | None]:
    """Read the ``choice.json`` of each target; None for one without a bundle.

    Raises:
        DataError: one cannot be read.
    """
    return [None if one.error else read_document(out / one.folder / "choice.json") for one in document.results]


def targets_headline(documents: Sequence[Document | None]) -> str:
    """Say how many targets have a file."""
    won = sum(found is not None and found.winner is not None for found in documents)
    return (
        f"{won} of {words.plural(len(documents), 'target')} {'has' if won == 1 else 'have'} a file within all limits."
    )


def render_targets(document: TargetsDocument, documents: Sequence[Document | None]) -> str:
    """Render the page: one table of all targets, then the proof and the charts of each."""
    views = [
        {"result": result, "document": found, **({} if found is None else target_view(found, result.folder))}
        for result, found in zip(document.results, documents, strict=True)
    ]
    return (
        page_environment()
        .get_template("targets.html")
        .render(
            task=document.task,
            version=edgeopt.__version__,
            headline=targets_headline(documents),
            all_won=all(found is not None and found.winner is not None for found in documents),
            rows=[_row(result, found) for result, found in zip(document.results, documents, strict=True)],
            views=views,
        )
    )


COLUMNS = ("target", "file", "smaller", "speed", "latency", "memory", "score drop", "limits")


def _row(result: TargetResult, document: Document | None) -> tuple[str, ...]:
    """Return the cells of a target's line, in the order of ``COLUMNS``."""
    if document is None:
        return (result.target, *["—"] * (len(COLUMNS) - 2), "failed")
    winner, baseline = document.winner, document.baseline
    shown = winner or baseline
    found = {row.limit: row.found_text for row in build_proof(shown, document.budget)}
    before, after = (sentences.deciding_size(trial, document.budget) for trial in (baseline, shown))
    smaller = words.times(before / after) if winner and before and after else "—"
    against = winner.against_baseline if winner else None
    speed = words.times(1 / against.latency_ratio) if against else "—"
    return (
        result.target,
        words.quantity(after, "bytes") if winner else "—",
        smaller,
        speed,
        *(found.get(limit, "—") for limit in ("latency", "memory", "score")),
        "kept" if winner else "not kept",
    )


def print_targets(document: TargetsDocument, documents: Sequence[Document | None], console: Console, out: Path) -> None:
    """Print one line for each target, and where its report is."""
    won = all(found is not None and found.winner is not None for found in documents)
    console.print(Text(targets_headline(documents), style="bold green" if won else "bold red"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("target", "limits") else "right", overflow="fold")
    for result, found in zip(document.results, documents, strict=True):
        style = "" if found is not None and found.winner is not None else "red"
        table.add_row(*_row(result, found), style=style)
    console.print(table)
    for result, found in zip(document.results, documents, strict=True):
        if result.error:
            console.print(f"{result.target}: {result.error}", markup=False, highlight=False)
        elif found is not None:
            text = f"{result.target}: {sentences.headline(found)} {sentences.binding(found)}"
            console.print(text, markup=False, highlight=False)
            for warning in found.warnings:
                console.print(Text(f"{result.target}: warning: {warning}", style="bold red"))
    files = "  ".join(
        str(path) for path in (out / "report.html", *(out / one.folder for one in document.results if not one.error))
    )
    console.print(Text(f"\n{files}"), soft_wrap=True)

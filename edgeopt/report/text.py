"""The result on a terminal: a table of baseline, winner and limits, and a few sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.records.budget import Budget
from edgeopt.report import noise, score_sentences, sentences, words
from edgeopt.report.document import Document, TrialPart
from edgeopt.report.failures import failure_notes
from edgeopt.report.ort_file import ort_sentence
from edgeopt.report.proof import ProofRow, is_higher_better

_KEPT = {True: Text("kept", style="green"), False: Text("missed", style="bold red"), None: Text("")}


def print_result(document: Document, console: Console, *, out: Path | None) -> None:
    """Print the result of a build.

    Args:
        document: The document of the choice.
        console: The console to print to; without a terminal it has 80 columns and no colour.
        out: The bundle's folder, whose files are named at the end; None if nothing was written.
    """
    won = document.winner is not None
    console.print(Text(sentences.headline(document), style="bold green" if won else "bold red"))
    for warning in document.warnings:
        console.print(Text(f"Warning: {warning}", style="bold red"))
    console.print(_table(document))
    for line in _lines(document):
        console.print(line, markup=False, highlight=False)
    if out is not None:
        model = [out / "model.onnx"] if won else []
        model += [out / document.ort.file] if document.ort else []
        files = "  ".join(str(path) for path in (*model, out / "report.html", out / "choice.json"))
        console.print(Text(f"\n{files}"), soft_wrap=True)


def _table(document: Document) -> Table:
    other = _shown(document)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(Text(f"{document.task} on {document.target}"), overflow="fold")
    table.add_column("baseline", justify="right")
    if other is not None:
        table.add_column(f"{'winner' if document.winner else 'nearest'}, #{other.number}", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("")
    for before, after in sentences.compared_rows(document):
        table.add_row(
            before.label,
            before.found_text,
            *([] if after is None or other is None else [_cell(after)]),
            before.allowed_text,
            _KEPT[(after or before).kept],
        )
    for label, cells in _facts(document.baseline, other, document.budget):
        table.add_row(Text(label, style="dim"), *[Text(cell, style="dim") for cell in cells], "", "")
    return table


def _shown(document: Document) -> TrialPart | None:
    """Return the trial to show next to the baseline: the winner, or the nearest; None if that is the baseline."""
    nearest = document.infeasible.nearest if document.infeasible else None
    other = document.winner or (None if nearest is None else document.trial(nearest))
    return None if other is None or other.number == document.baseline.number else other


def _cell(row: ProofRow) -> str:
    """Write a value, with the end of its interval that decides."""
    if row.interval is None:
        return row.found_text
    sign = "≥" if row.floor else "≤"
    return f"{row.found_text} ({sign}{words.NBSP}{row.judged_text.removesuffix(' ms').removesuffix(' / s')})"


def _facts(baseline: TrialPart, other: TrialPart | None, budget: Budget) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows that no limit is about."""
    both = [baseline] if other is None else [baseline, other]
    yield (
        ("Score" if is_higher_better(baseline) else "Score (error)"),
        [words.quantity(trial.score, "score") for trial in both],
    )
    by_download, has_runtime = budget.size_metric == "download", budget.runtime_size_bytes is not None
    if by_download or has_runtime:
        yield "File size", [words.quantity(trial.size_bytes, "bytes") for trial in both]
    if not by_download or has_runtime:
        yield "Download (deflated)", [words.quantity(trial.download_bytes, "bytes") for trial in both]
    yield "Parameters", ["—" if trial.parameters is None else f"{trial.parameters:,}" for trial in both]


def _lines(document: Document) -> Iterator[str]:
    """Yield the sentences below the table, one per line."""
    if (trial := _shown(document)) is not None:
        recipe = words.recipe_text(
            trial.recipe,
            trial.parameters,
            document.baseline.parameters,
            weight_types=trial.weight_types,
            exporter=document.baseline.exporter,
        )
        yield f"Trial {trial.number}: {recipe}."
    yield sentences.binding(document)
    if document.baseline.exporter == "given" and document.baseline.notes:
        yield f"The given file: {'; '.join(document.baseline.notes)}."
    yield from failure_notes(document)
    optional = (
        sentences.float_nodes(document),
        sentences.near_misses(document),
        sentences.barred(document),
        sentences.passed_over(document),
        *sentences.float_prefix_notes(document),
        score_sentences.score_meaning(document),
        score_sentences.missing_interval(document),
        score_sentences.worst_class(document),
        score_sentences.expected_drop(document),
        score_sentences.unjudged_outputs(document),
        sentences.teacher(document),
        sentences.waived(document),
        *sentences.int8_losses(document),
        sentences.offer(document),
        ort_sentence(document),
        *noise.noise_notes(document),
        *noise.timing_notes(noise.compared_trials(document)),
    )
    yield from (line for line in optional if line)
    yield from sentences.variant_gains(document)
    yield sentences.device(document)
    yield from (line for line in (score_sentences.test_scores(document), sentences.time_spent(document)) if line)

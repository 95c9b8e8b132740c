"""``report.html``: a document goes in, one page that loads nothing comes out.

The page is made of sections: to add one, write a template and add a ``Section`` to ``SECTIONS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import jinja2

import edgeopt
from edgeopt.report import noise, score_sentences, sentences, words
from edgeopt.report.chart import Chart, Role, Sample, curves, scatter
from edgeopt.report.document import Document, TrialPart
from edgeopt.report.failures import failure_notes
from edgeopt.report.ort_file import ort_sentence
from edgeopt.report.proof import build_proof, is_higher_better

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """One part of the page: ``build`` returns the template's variables, or None if there is nothing to show."""

    key: str
    """The anchor, and the name of the template."""
    title: str
    build: Callable[[Document], dict[str, object] | None]


@dataclass(frozen=True)
class TrialLine:
    """One line of the table of all trials, in words."""

    part: TrialPart
    role: Role
    recipe: str
    beaten: bool
    """Another trial is at least as good in every metric."""
    comment: str
    """Why it did not win."""


def _role(trial: TrialPart, document: Document) -> Role:
    """Return the mark of a measured trial."""
    if document.winner is not None and trial.number == document.winner.number:
        return "winner"
    if trial.number == document.baseline.number:
        return "baseline"
    return "missed" if trial.misses else "kept"


def _proof(document: Document) -> dict[str, object]:
    nearest = document.infeasible.nearest if document.infeasible else None
    shown = document.winner or (document.baseline if nearest is None else document.trial(nearest))
    kind = "winner" if document.winner else "nearest trial" if nearest is not None else "baseline"
    return {
        "rows": list(
            zip(build_proof(shown, document.budget), build_proof(document.baseline, document.budget), strict=True)
        ),
        "trial": shown,
        "kind": kind,
        "is_baseline": shown.number == document.baseline.number,
    }


def _test(document: Document) -> dict[str, object] | None:
    sentence = score_sentences.test_scores(document)
    return None if sentence is None else {"sentence": sentence}


def _charts(document: Document) -> dict[str, object] | None:
    found = (_score_chart(document), _latency_chart(document), _sparsity_chart(document))
    charts = [chart for chart in found if chart]
    return {"charts": charts} if charts else None


def _samples(document: Document, y: Callable[[TrialPart], float | None]) -> list[Sample]:
    samples = []
    for trial in document.trials:
        size, value = sentences.deciding_size(trial, document.budget), y(trial)
        if size is not None and value is not None:
            role = _role(trial, document)
            samples.append(Sample(trial.number, size, value, role, _hover(trial, document)))
    return samples


def _hover(trial: TrialPart, document: Document) -> str:
    size = words.quantity(sentences.deciding_size(trial, document.budget), "bytes")
    latency = f"{words.quantity(trial.latency_at_limit_ms, 'ms')}{' estimated' if document.estimate else ''}"
    score = words.quantity(trial.score, "score")
    return f"Trial {trial.number}: {_recipe(trial, document)} – {size}, {latency}, score {score}"


def _recipe(trial: TrialPart, document: Document) -> str:
    return words.recipe_text(
        trial.recipe,
        trial.parameters,
        document.baseline.parameters,
        weight_types=trial.weight_types,
        exporter=document.baseline.exporter,
    )


def _size_label(document: Document) -> str:
    return "Download (deflated)" if document.budget.size_metric == "download" else "File size"


def _score_chart(document: Document) -> Chart | None:
    samples = _samples(document, lambda trial: trial.score)
    budget, baseline = document.budget, document.baseline.score
    higher = is_higher_better(document.baseline)
    worst = [] if budget.min_score is None else [budget.min_score]
    if budget.max_score_drop is not None and baseline is not None:
        worst.append(baseline - budget.max_score_drop if higher else baseline + budget.max_score_drop)
    return (
        scatter(
            samples,
            key="score",
            title="Size against score",
            labels=(_size_label(document), "Score" if higher else "Score (error)"),
            texts=(lambda size: words.limit(size, "bytes"), words.tick),
            limits=(budget.max_deciding_bytes, (max if higher else min)(worst, default=None)),
            score_on_y=True,
            higher=higher,
        )
        if samples
        else None
    )


def _latency_chart(document: Document) -> Chart | None:
    budget = document.budget
    samples = _samples(document, lambda trial: trial.latency_at_limit_ms)
    return (
        scatter(
            samples,
            key="latency",
            title="Size against latency",
            labels=(
                _size_label(document),
                f"{sentences.latency_name(document)}, ms",
            ),
            texts=(lambda size: words.limit(size, "bytes"), words.tick),
            limits=(budget.max_deciding_bytes, budget.max_latency_ms),
            score_on_y=False,
        )
        if samples
        else None
    )


def _sparsity_chart(document: Document) -> Chart | None:
    curve = document.sparsity
    if curve is None or not all(point.loss > 0 for points in curve.points.values() for point in points):
        return None
    return curves(
        {name: [(one.nonzero_ratio, one.loss) for one in points] for name, points in curve.points.items()},
        key="sparsity",
        title="Zeros against loss, before training",
        description=f"The loss of {curve.samples:,} samples against the share of weights that are not zero.",
        labels=("Weights that are not zero", "Loss"),
        texts=(words.percent, words.significant),
    )


def _trials(document: Document) -> dict[str, object]:
    lines = [
        TrialLine(
            part=trial,
            role=_role(trial, document),
            recipe=_recipe(trial, document),
            beaten=trial.number not in document.pareto_front,
            comment=_comment(trial, document),
        )
        for trial in document.trials
        if trial.status == "measured"
    ]
    lines.sort(key=lambda line: sentences.deciding_size(line.part, document.budget) or 0)
    return {"lines": lines}


def _comment(trial: TrialPart, document: Document) -> str:
    if trial.misses:
        return "misses " + words.listed([sentences.miss_text(miss, document.budget) for miss in trial.misses])
    if trial.pays is False:
        other = "the same network in float32" if sentences.is_slower_than_float(trial) else "the baseline"
        return f"slower than {other}"
    winner = document.winner
    if winner is not None and winner.full_int8 == trial.number and trial in sentences.smaller_trials(document):
        return f"keeps every limit, but trial {winner.number} is faster by more than it is larger"
    return "keeps every limit"


def _int8_losses(document: Document) -> dict[str, object] | None:
    slower = [trial for trial in document.trials if sentences.is_slower_than_float(trial)]
    return {"slower": slower, "sentences": sentences.int8_losses(document)} if slower else None


def _sensitivity(document: Document) -> dict[str, object] | None:
    ranked = [trial for trial in document.trials if trial.sensitivity]
    return {"ranked": ranked, "sentence": sentences.float_nodes(document)} if ranked else None


def _failures(document: Document) -> dict[str, object] | None:
    failed = [trial for trial in document.trials if trial.status == "failed"]
    return {"failed": [(trial, _recipe(trial, document)) for trial in failed]} if failed else None


def _parity(document: Document) -> dict[str, object] | None:
    checked = [trial for trial in document.trials if trial.parities]
    return {"checked": checked} if checked else None


def _notes(document: Document) -> dict[str, object] | None:
    """Group equal notes, so that a fallback that every trial took is reported once."""
    trials: dict[str, list[str]] = {}
    for trial in document.trials:
        for note in trial.notes:
            trials.setdefault(note, []).append(str(trial.number))
    search = sentences.variant_gains(document)
    notes = [(note, words.listed(numbers)) for note, numbers in trials.items()]
    return {"notes": notes, "search": search} if notes or search else None


def _time(document: Document) -> dict[str, object] | None:
    if not document.seconds:
        return None
    longest = max(document.seconds.values()) or 1.0
    stages = sorted(document.seconds.items(), key=lambda stage: -stage[1])
    return {
        "stages": [(stage, seconds, 100 * seconds / longest) for stage, seconds in stages],
        "total": sum(document.seconds.values()),
    }


def _machine(document: Document) -> dict[str, object]:
    shown = document.winner or document.baseline
    return {
        "environment": document.environment,
        "runtime": document.runtime,
        "sentence": sentences.device(document),
        "shown": shown,
        "uri": document.device.uri,
    }


SECTIONS = (
    Section("proof", "Proof", _proof),
    Section("test", "Test scores", _test),
    Section("charts", "Every trial", _charts),
    Section("trials", "All trials", _trials),
    Section("sensitivity", "Layers that are most sensitive to int8", _sensitivity),
    Section("int8-losses", "Layers that became slower in int8", _int8_losses),
    Section("failures", "Failed trials", _failures),
    Section("parity", "Parity at each stage", _parity),
    Section("notes", "Notes", _notes),
    Section("time", "Where the time went", _time),
    Section("machine", "Device and environment", _machine),
)
"""In page order."""


def page_environment() -> jinja2.Environment:
    """Return what renders templates: names that the user chose are escaped, and nothing is loaded from anywhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "quantity": words.quantity,
        "times": words.times,
        "duration": words.duration,
        "significant": words.significant,
        "speed": sentences.speed,
        "plural": words.plural,
        "percent": words.percent,
        "runtime": words.runtime_text,
        "nodes": words.nodes,
    }
    return environment


def target_view(document: Document, key: str) -> dict[str, object]:
    """Return what a page of several targets shows of one: its result, its proof and its charts.

    Args:
        document: Of the target.
        key: Makes the anchors of its charts different from those of other targets.
    """
    charts = _charts(document)
    if charts is not None:
        found = cast("list[Chart]", charts["charts"])
        charts = {"charts": [replace(chart, key=f"{key}-{chart.key}") for chart in found]}
    return {
        "headline": sentences.headline(document),
        "binding": sentences.binding(document),
        "caution": sentences.caution(document),
        "proof": _proof(document),
        "charts": charts,
    }


def render_page(document: Document) -> str:
    """Render the page of one target."""
    built = [(section, section.build(document)) for section in SECTIONS]
    compared = noise.compared_trials(document)
    return (
        page_environment()
        .get_template("page.html")
        .render(
            document=document,
            link_prefix="",
            version=edgeopt.__version__,
            headline=sentences.headline(document),
            binding=sentences.binding(document),
            latency_name=sentences.latency_name(document),
            warnings=document.warnings,
            caution=sentences.caution(document),
            remarks=[
                text
                for text in (
                    *failure_notes(document),
                    sentences.near_misses(document),
                    sentences.barred(document),
                    sentences.passed_over(document),
                    sentences.offer(document),
                    ort_sentence(document),
                    *sentences.float_prefix_notes(document),
                    score_sentences.score_meaning(document),
                    score_sentences.missing_interval(document),
                    score_sentences.worst_class(document),
                    score_sentences.expected_drop(document),
                    score_sentences.unjudged_outputs(document),
                    sentences.teacher(document),
                    sentences.waived(document),
                )
                if text
            ],
            noise=[*noise.noise_notes(document), *noise.timing_notes(compared)],
            other_noise=noise.timing_notes(trial for trial in document.trials if trial not in compared),
            winner_recipe=_recipe(document.winner, document) if document.winner else None,
            cards=_cards(document),
            sections=[(section, view) for section, view in built if view is not None],
        )
    )


def _cards(document: Document) -> list[tuple[str, str, str]]:
    """Return the few numbers at the top: name, value, and details."""
    winner, baseline = document.winner, document.baseline
    if winner is None or winner.number == baseline.number:
        return []
    cards = []
    before, after = (sentences.deciding_size(trial, document.budget) for trial in (baseline, winner))
    if before and after:
        cards.append(_gain(("smaller", "larger"), before, after))
    if winner.against_baseline is not None:
        against = winner.against_baseline
        name = "slower" if against.verdict == "slower" else "faster"
        ends = (against.latency_ratio, *against.ci95)
        ratio, one, other = ends if name == "slower" else tuple(1 / end for end in ends)
        machine = " on this machine" if document.estimate else ""
        span = f"A/B{machine}, 95 %: {words.significant(min(one, other))} to {words.times(max(one, other))}"
        cards.append((name, words.times(ratio), span))
    if winner.peak_memory_bytes and baseline.peak_memory_bytes:
        cards.append(_gain(("less memory", "more memory"), baseline.peak_memory_bytes, winner.peak_memory_bytes))
    if winner.score is not None and baseline.score is not None:
        scores = f"{words.score(baseline.score)} → {words.score(winner.score)}"
        difference = winner.score - baseline.score
        cards.append(
            (
                "score" if is_higher_better(baseline) else "error",
                f"{'+' if difference > 0 else ''}{words.score(difference)}",
                scores,
            )
        )
    return cards


def _gain(names: tuple[str, str], before: int, after: int) -> tuple[str, str, str]:
    """Write a change of bytes as a ratio above one, under the name of its direction."""
    ratio = before / after
    detail = f"{words.size(before)} → {words.size(after)}"
    return (names[0], words.times(ratio), detail) if ratio >= 1 else (names[1], words.times(1 / ratio), detail)

"""What a user asked of widths, checked against the model, and what the report says about it."""

from __future__ import annotations

from collections.abc import Iterable

from edgeopt.errors import StepError
from edgeopt.onnx_module.convert import to_module
from edgeopt.planning.width_rules import NO_EFFECT_NOTE, check_rules, matches
from edgeopt.planning.widths import UNREACHED_NOTE
from edgeopt.records.budget import Budget
from edgeopt.records.trial import Measured, Trial
from edgeopt.records.width_rules import WidthRules
from edgeopt.report import words
from edgeopt.select.limits import judge_limits
from edgeopt.task import CheckedTask
from edgeopt.tasks.given.onnx_file import OnnxTask

_ASKED = "--keep, --min-width or edgeopt.toml"


def settle_width_rules(asked: WidthRules, task: CheckedTask | OnnxTask) -> WidthRules:
    """Return the rules of the task and those of ``edgeopt.toml`` and the command line together.

    Args:
        asked: In ``edgeopt.toml`` and on the command line.
        task: The task.

    Raises:
        ConfigError: a glob matches nothing, or a width is below 1.
    """
    if isinstance(task, OnnxTask):
        return _rules_of_file(asked, task)
    names = [name for name, _ in task.model.named_parameters()]
    check_rules(task.width_rules, names, task.spec)
    check_rules(asked, names, _ASKED)
    return task.width_rules.joined(asked)


def _rules_of_file(asked: WidthRules, task: OnnxTask) -> WidthRules:
    """Return the rules for the module of a given file, whose globs are about the names of its weights and nodes.

    A file that is not pruned keeps all of its channels anyway.
    """
    if not asked.globs or task.training is None:
        return WidthRules()
    try:
        file_names = to_module(task.given.model).file_names
    except StepError:  # the report will say that the file is not pruned because of it
        return WidthRules()
    known = sorted({name for names in file_names.values() for name in names})
    check_rules(asked, known, _ASKED, f"weight of {task.path}, nor a node that has weights")
    found = {
        glob: [place for place, names in file_names.items() if any(matches(glob, name) for name in names)]
        for glob in asked.globs
    }
    widths: dict[str, int] = {}
    for glob, width in asked.min_widths.items():
        widths |= {place: max(width, widths.get(place, 0)) for place in found[glob]}
    return WidthRules(
        keep=tuple(dict.fromkeys(place for glob in asked.keep for place in found[glob])), min_widths=widths
    )


def width_notes(rules: WidthRules, trials: Iterable[Trial], budget: Budget) -> tuple[str, ...]:
    """Return what the report says about widths: what was kept, and latency limits that they could not reach.

    A limit that the trial keeps after all is not named.
    """
    notes = []
    if rules.keep:
        notes.append(f"No channel was cut from {', '.join(rules.keep)}.")
    if rules.min_widths:
        widths = ", ".join(f"{width} in {glob}" for glob, width in rules.min_widths.items())
        notes.append(f"The least number of output channels was {widths}.")
    unreached: dict[str, list[str]] = {}
    for trial in trials:
        if not isinstance(trial.outcome, Measured):
            continue
        found = trial.outcome.artifact.notes
        notes += [f"{note}." for note in found if note.endswith(NO_EFFECT_NOTE)]
        missed = {finding.limit for finding in judge_limits(trial.outcome, budget) if not finding.kept}
        for note in found if "latency" in missed else ():
            if UNREACHED_NOTE in note:
                unreached.setdefault(note, []).append(str(trial.number))
    for note, numbers in unreached.items():
        notes.append(f"Trial{'s' * (len(numbers) > 1)} {words.listed(numbers)}: {note}.")
    return tuple(dict.fromkeys(notes))

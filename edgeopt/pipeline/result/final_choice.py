"""The choice among the trials of a finished search, with everything that the report has to say about the build."""

from __future__ import annotations

import msgspec

from edgeopt.passes.branches.proof import MERGED_NOTE, UNMERGED_NOTE
from edgeopt.passes.tracing.trainable import FROZEN_NOTE
from edgeopt.passes.training_differences import DIFFERENCE_NOTE
from edgeopt.pipeline.artifacts.large_models import size_notes
from edgeopt.pipeline.artifacts.networks import ExportedFile
from edgeopt.pipeline.context import Build
from edgeopt.pipeline.score_checks import ScoreRemarks
from edgeopt.pipeline.search.driver import Search
from edgeopt.pipeline.search.variants.unseen_rows import unseen_rows_warnings
from edgeopt.pipeline.search.width_rules import width_notes
from edgeopt.records.choice import Choice, count_failed_trainings
from edgeopt.select.decision import choose
from edgeopt.select.teacher_gain import undertrained_note
from edgeopt.task import CheckedTask
from edgeopt.tasks.given.onnx_file import OnnxTask


def decide(build: Build, search: Search, remarks: ScoreRemarks, notes: tuple[str, ...] = ()) -> Choice:
    """Choose among the trials of a finished search."""
    task = build.data.task
    choice = choose(
        tuple(search.runner.trials),
        build.budget,
        task=task.name,
        target=build.profile.name,
        device=build.device_info,
        proven_on_target=build.device_info.kind == "measured",
        seconds=build.clock.seconds,
        notes=(
            *notes,
            *task_notes(build),
            *remarks.notes,
            *search.notes,
            *training_notes(search),
        ),
        sparsity=search.planner.sparsity,
    )
    teacher = str(task.teacher) if isinstance(task, CheckedTask) and task.teacher else None
    return msgspec.structs.replace(
        choice,
        teacher=teacher,
        given_sha256=task.file_sha256 if isinstance(task, OnnxTask) else None,
        warnings=(*remarks.warnings, *unseen_rows_warnings(choice)),
        score_kind=remarks.kind,
        failed_trainings=count_failed_trainings(choice.trials),
        ended_early=search.ended_early,
    )


def task_notes(build: Build) -> tuple[str, ...]:
    """Return what the report has to say about the task and the sizes of its inputs."""
    notes = build.data.task.notes if isinstance(build.data.task, CheckedTask) else []
    if any(build.sizes):
        cases = " and ".join(", ".join(f"{name} {size}" for name, size in sizes.items()) for sizes in build.sizes)
        worst = "; the worst of these counts" if len(build.sizes) > 1 else ""
        notes = [*notes, f"latency and memory are judged at {cases}{worst}"]
    return tuple(dict.fromkeys(map(_sentence, notes)))


def training_notes(search: Search) -> tuple[str, ...]:
    """Return what the report has to say about how the candidates were trained."""
    notes = search.runner.exported.notes
    merged = [_sentence(note) for note in notes if MERGED_NOTE in note or UNMERGED_NOTE in note]
    gain = undertrained_note(search.runner.trials)
    widths = width_notes(search.build.width_rules, search.runner.trials, search.build.budget)
    sizes = size_notes(search.build, search.runner.original, search.runner.exported)
    return (
        *merged,
        *model_notes(search.runner.exported),
        *widths,
        *sizes,
        *search.runner.unseen_rows.notes,
        *((gain,) if gain else ()),
    )


def model_notes(exported: ExportedFile) -> tuple[str, ...]:
    """Return what candidates train otherwise than the user's module: frozen parameters, parts that only train."""
    return tuple(note for note in exported.notes if note.endswith(FROZEN_NOTE) or note.startswith(DIFFERENCE_NOTE))


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."

"""Variants without the table rows that no training sample reads, if the user asked for them.

Each file that keeps the score is made once more without these rows, and is judged like any other trial.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

from edgeopt.errors import ConfigError, EdgeoptError, InputError
from edgeopt.graph.model import lift_constants, load
from edgeopt.graph.weights.id_tables import Bits, IdReader, find_id_tables
from edgeopt.graph.weights.unseen_rows import choose_rows
from edgeopt.pipeline.artifacts.networks import ExportedFile
from edgeopt.pipeline.boundary import as_failed, run_step
from edgeopt.pipeline.context import Build
from edgeopt.records.choice import Choice
from edgeopt.records.recipe import DropUnseenRows, GraphStep
from edgeopt.records.unseen_rows import UnseenRows
from edgeopt.task import CheckedTask
from edgeopt.tasks.given.onnx_file import OnnxTask

_ASKED = "--drop-unseen-rows, --unknown-id or edgeopt.toml"


def settle_unseen_rows(asked: UnseenRows, task: CheckedTask | OnnxTask) -> UnseenRows:
    """Return what the task, ``edgeopt.toml`` and the command line say about rows that are never read.

    Args:
        asked: In ``edgeopt.toml`` and on the command line.
        task: The task.

    Raises:
        ConfigError: an unknown id is given for an input that does not exist, or rows are not to be dropped at all.
        InputError: the task has no real data, so that it is not known which rows are read.
    """
    rules = task.unseen_rows.joined(asked) if isinstance(task, CheckedTask) else asked
    if rules.unknown_ids and not rules.drop:
        raise ConfigError(f"{_ASKED}: unknown ids are for --drop-unseen-rows. Add it, or leave them out.")
    for name, unknown in rules.unknown_ids.items():
        if name not in task.input_names:
            raise ConfigError(f"{_ASKED}: the inputs of the model are {', '.join(task.input_names)}, not '{name}'.")
        if unknown < 0:
            raise ConfigError(f"{_ASKED}: the unknown id {unknown} of '{name}' is below 0.")
    if rules.drop and isinstance(task, OnnxTask) and task.random_inputs:
        raise InputError("--drop-unseen-rows keeps the rows that real inputs read: give them with --data.")
    return rules


class _Found(NamedTuple):
    step: DropUnseenRows | None
    reasons: dict[str, str]


class UnseenRowSteps:
    """Finds the step that drops unseen rows of a network's file; training data are read once.

    Args:
        build: The build.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self.notes: list[str] = []
        """What was not dropped, and why."""
        self._found: dict[str, _Found] = {}
        self._seen: dict[str, dict[str, Bits]] = {}
        self._lock = threading.Lock()

    def without_unseen_rows(
        self, exported: ExportedFile, steps: Iterable[tuple[GraphStep, ...]]
    ) -> list[tuple[GraphStep, ...]]:
        """Return each of these variants of a file without its unseen rows; nothing if it has none.

        Raises:
            TaskError: the user's training data cannot be read.
        """
        if not self.build.unseen_rows.drop:
            return []
        with self._lock:  # candidates are made in several threads
            found = self._step_of(exported)
        return [] if found is None else [(found, *one) for one in steps]

    def _step_of(self, exported: ExportedFile) -> DropUnseenRows | None:
        found = self._found.get(exported.sha256)
        if found is None:
            try:
                found = run_step("drop-unseen-rows", self._find, exported)
            except EdgeoptError as error:
                found = _Found(None, {"": as_failed(error).reason})
            self._found[exported.sha256] = found
            self._note(found)
        return found.step

    def _find(self, exported: ExportedFile) -> _Found:
        model = load(self.build.workspace.artifact(exported.sha256), "drop-unseen-rows")
        lift_constants(model.graph)
        tables, reasons = find_id_tables(model.graph)
        reader = IdReader(model, tables)
        if tables and reader.key not in self._seen:
            self.build.progress("drop-unseen-rows", "reading the ids of the training data")
            for batch in self.build.data.training_inputs():
                reader.read(batch)
            self._seen[reader.key] = reader.seen
        step, others = choose_rows(tables, self._seen.get(reader.key, {}), self.build.unseen_rows.unknown_ids)
        return _Found(step, reasons | others)

    def _note(self, found: _Found) -> None:
        notes = [f"All rows of '{name}' stay: {reason}." if name else reason for name, reason in found.reasons.items()]
        if found.step is None and not notes:
            notes = ["No rows were dropped: no table is read at the ids of an input."]
        self.notes += [note for note in notes if note not in self.notes]


def unseen_rows_warnings(choice: Choice) -> tuple[str, ...]:
    """Return what the user has to know about a winner that has lost rows."""
    if choice.winner is None:
        return ()
    steps = [one for one in choice.trial(choice.winner).recipe.graph_steps if isinstance(one, DropUnseenRows)]
    return tuple(
        f"'{name}': {kept.sentence}. On new data with other ids, such as words that the training data lack, it may "
        "score lower than the data of this build show."
        for step in steps
        for name, kept in step.tables.items()
    )

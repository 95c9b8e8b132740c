"""What tasks from a trained model have in common: the model, what the user says about it, and a score that is known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edgeopt.records.budget import Budget
from edgeopt.records.preprocessing import Preprocessing
from edgeopt.records.scoring import OutputScore, ScoreName, ScoreWish
from edgeopt.task import Training
from edgeopt.tasks.known_score import KnownScore


class ModelTask:
    """A model, or a function that makes it, and the members of a ``Task`` that its user may give."""

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        *,
        name: str,
        labels: Sequence[str] = (),
        training: Training | None = None,
        students: Mapping[str, Callable[[], nn.Module]] | None = None,
        budgets: Mapping[str, Budget] | None = None,
        preprocessing: str | Preprocessing | Mapping[str, Preprocessing] = "",
        licence: str = "",
        teacher: str | Path | None = None,
        input_names: Sequence[str] = (),
        output_names: Sequence[str] = (),
        batch_dim: int | Mapping[str, int | None] | None = None,
        dynamic_axes: Mapping[str, Mapping[int, Any]] | None = None,
        keep: Sequence[str] = (),
        min_widths: Mapping[str, int] | None = None,
        drop_unseen_rows: bool = False,
        unknown_ids: Mapping[str, int] | None = None,
        states: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.input_names, self.output_names = tuple(input_names), tuple(output_names)
        if batch_dim is not None:
            self.batch_dim = batch_dim
        self.dynamic_axes = dynamic_axes
        self.keep, self.min_widths = keep, min_widths
        self.drop_unseen_rows, self.unknown_ids = drop_unseen_rows, unknown_ids
        self.states = states
        self.labels = tuple(labels)
        self.training = training or Training()
        self.students = students or {}
        self.budgets = budgets or {}
        self.preprocessing, self.licence = preprocessing, licence
        self.teacher = teacher
        self._model = model
        caller = inspect.currentframe()
        while caller is not None and str(caller.f_globals.get("__name__", "")).startswith("edgeopt"):
            caller = caller.f_back
        self.source_module = caller.f_globals.get("__name__") if caller is not None else None

    def build_model(self) -> nn.Module:
        """Return the trained model."""
        if callable(self._model) and not isinstance(self._model, nn.Module):
            self._model = self._model()  # once: it may train
        return self._model


class ScoredModelTask(ModelTask, KnownScore):
    """A task from a model whose score is one of those that edgeopt knows, and the options for it."""

    def __init__(
        self,
        *args: Any,
        score: ScoreName | None = None,
        score_output: str | None = None,
        ignore_label: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.score_wish = ScoreWish(
            score=score,
            output=score_output,
            ignored=ignore_label,
            how="score=KIND and score_output=NAME",
            ignoring="ignore_label=N",
        )

    @property
    def postprocessing(self) -> str:
        """How an app reads the outputs."""
        parts = self.score_kind.parts if self.score_kind else ()
        if not parts:
            return _LOGITS
        words = [_how_to_read(part) for part in parts]
        named = [f"'{part.output}': {text}" for part, text in zip(parts, words, strict=True)]
        return words[0] if len(words) == 1 else "; ".join(named)


_LOGITS = "logits, one per class: the largest is the answer, softmax gives probabilities"


def _how_to_read(part: OutputScore) -> str:
    if part.layout == "classes":
        return _LOGITS
    if part.layout == "yes or no":
        form = "probabilities" if part.threshold else "logits, of which the sigmoid gives probabilities"
        return f"{form}: a value above {part.threshold:g} is a yes"
    if part.layout == "class numbers":
        return "the number of the class"
    return f"values in the unit of {'the labels' if part.labels != 'outputs' else 'the model'}"

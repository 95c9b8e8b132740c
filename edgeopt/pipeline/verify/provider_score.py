"""A file's score on each execution provider of a device, and how much worse it is than on the processor.

In: a file and an evaluation set. Out: a ``ProviderScore`` for each provider, from outputs of the whole set on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.bench.providers import PROCESSOR
from edgeopt.bench.run_target import RunTarget
from edgeopt.bundle.manifest import describe_tensor
from edgeopt.errors import InputError, TaskError
from edgeopt.graph.given.files import read_given
from edgeopt.graph.given.values import check_inputs, check_outputs, model_inputs
from edgeopt.pipeline.verify.device_score import (
    ScoredOutputs,
    check_set_inputs,
    score_interval,
    score_outputs,
    settle_targets,
)
from edgeopt.records.base import Record
from edgeopt.records.scoring import ScoreDirection
from edgeopt.report.parts import Span
from edgeopt.scoring.drop import drop_interval, worsening
from edgeopt.tasks.given.onnx_file import OnnxTask

if TYPE_CHECKING:
    from edgeopt.pipeline.evaluation import EvaluationSet


class ProviderScore(Record, frozen=True, kw_only=True):
    """The score of a file on one execution provider."""

    task: str
    """As the user named it."""
    value: float
    ci95: Span | None
    """Of the score; None if it is neither a mean of scores of single samples nor computed from numbers of them."""
    drop: float | None
    """How much worse it is than on the processor, over the same samples; None if that does not run the file."""
    drop_ci95: Span | None
    """Paired; None on the processor itself, and if samples of the score cannot be drawn."""
    samples: int
    direction: ScoreDirection


class ProviderScorer:
    """Scores a file on one provider after the other; the processor comes first, because others are compared with it.

    Args:
        evaluation: The set.
        model: The user's file.

    Raises:
        InputError: the file is in ONNX Runtime's own format, whose inputs cannot be checked.
        TaskError: the file cannot be read as a model, has inputs or outputs that are not tensors of numbers, or others
            than the task.
    """

    def __init__(self, evaluation: EvaluationSet, model: Path) -> None:
        if model.suffix == ".ort":
            raise InputError(f"{model}: --score goes with an .onnx file, whose inputs can be checked.")
        graph = read_given(model).model.graph
        check_inputs(model, graph)
        check_outputs(model, graph)
        inputs = tuple(map(describe_tensor, model_inputs(graph)))
        check_set_inputs(evaluation, inputs, str(model), "Give a task, or data, with the inputs of this file.")
        self._evaluation = evaluation
        self._names = _find_outputs(evaluation, [value.name for value in graph.output], model)
        self._targets: list[object] | None = None
        self._on_processor: ScoredOutputs | None = None

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self._evaluation.samples

    def score(self, model: Path, run_target: RunTarget) -> ProviderScore:
        """Score the file on the provider that a target names first.

        Without labels, the score is the agreement with the outputs of the file that the task names, on the first
        provider that runs it.

        Args:
            model: The file as it is run.
            run_target: Where.

        Raises:
            DataError, TaskError: outputs and labels do not fit, or the task's score fails.
            ProviderError, StepError, DeviceError: see ``edgeopt.bench.outputs.run_model``.
        """
        evaluation = self._evaluation
        if self._targets is None:
            self._targets = list(settle_targets(evaluation, model, run_target, None))
        names = evaluation.task.output_names if isinstance(evaluation.task, OnnxTask) else self._names
        found = score_outputs(evaluation, model, run_target, self._targets, names)
        if run_target.profile.providers[0] == PROCESSOR:
            self._on_processor = found
        base, direction = self._on_processor, evaluation.score_direction
        paired = None
        if base is not None and base is not found:
            read = (base.pairs, found.pairs, evaluation.counts)
            paired = drop_interval(base, found, evaluation, lambda: read)
        interval = score_interval(evaluation, found)
        return ProviderScore(
            task=evaluation.task.spec,
            value=found.value,
            ci95=None if interval is None else (interval.low, interval.high),
            drop=None if base is None else worsening(base.value, found.value, direction),
            drop_ci95=None if paired is None else (paired.low, paired.high),
            samples=evaluation.samples,
            direction=direction,
        )


def _find_outputs(evaluation: EvaluationSet, found: Sequence[str], model: Path) -> tuple[str, ...]:
    """Return a file's outputs in the task's order: by their names, or if these are others, in the file's order.

    Raises:
        TaskError: the file has another number of outputs, or lacks one of a given file's.
    """
    task = evaluation.task
    if set(task.output_names) <= set(found):
        return tuple(task.output_names)
    if isinstance(task, OnnxTask) or len(task.output_names) != len(found):
        raise TaskError(
            f"{task.spec} has the outputs {', '.join(task.output_names)}, but {model} gives {', '.join(found)}. Give a "
            "task, or data, with the outputs of this file."
        )
    return tuple(found)

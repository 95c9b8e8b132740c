"""Tasks from a model and two data loaders: classification of any form of labels, and regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.errors import DataError, TaskError
from edgeopt.records.scoring import OutputScore, ScoreKind, ScoreName
from edgeopt.scoring.facts import unwrapped
from edgeopt.task.logits import class_logits
from edgeopt.task.values import flat_outputs, to_numpy
from edgeopt.tasks.loaders import Batches, LoaderTask
from edgeopt.tasks.model_task import ScoredModelTask

_ROUNDING = 1e-3
"""By which labels that were mixed or smoothed in float16 may leave their range."""


class Classification(LoaderTask, ScoredModelTask):
    """A ``Task`` whose outputs answer with classes, or with yes or no; its score and its loss follow from its data.

    ``edgeopt.scoring`` says which outputs and labels are known. The trained network shows what its outputs are before
    anything is trained or measured.
    """

    labels_source = "eval, labels"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"name": "classification", **options})

    def settle_score(
        self, outputs: Sequence[Sequence[NDArray[Any]]], names: Sequence[str], labels: Sequence[Any] | None
    ) -> ScoreKind:
        """Decide what the score is; see ``KnownScore``.

        Raises:
            DataError: the labels fit no output, or are real numbers.
        """
        kind = super().settle_score(outputs, names, labels)
        if kind.parts[0].layout == "values" and self.score_wish.score is None:
            raise DataError(
                f"{self.labels_source}: the labels are real numbers, like the output '{kind.parts[0].output}'. Use "
                "edgeopt.regression(...), which is scored by the mean absolute error, or name another score."
            )
        return kind

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss that belongs to the score.

        Cross-entropy for classes, binary cross-entropy for yes or no, the absolute error for ``mae``, and the squared
        error for other scores of real numbers. Ignored labels don't count.

        Raises:
            TaskError: the outputs are numbers of classes, which have no gradient.
        """
        tensors = flat_outputs(outputs)
        part = self._part_of(tensors, targets)
        return training_loss(part, tensors[part.index], torch.as_tensor(unwrapped(targets)))

    def _part_of(self, outputs: Sequence[Tensor], targets: Any) -> OutputScore:
        if self.score_kind is not None:
            return self.score_kind.parts[0]
        arrays = tuple(to_numpy(output) for output in outputs)
        return self.kind_of([(arrays, to_numpy(targets))]).parts[0]


class Regression(Classification):
    """A ``Task`` whose outputs are real numbers, scored by an error of which lower is better."""

    def __init__(self, *args: Any, score: ScoreName | None = "mae", **options: Any) -> None:
        super().__init__(*args, score=score or "mae", **{"name": "regression", **options})


def training_loss(part: OutputScore, output: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of an output against labels in any form that ``part`` knows.

    Args:
        part: How the output is judged.
        output: Of the network that is trained.
        targets: Labels; they may have dimensions of 1 that the output lacks, or be one-hot.

    Raises:
        TaskError: the output has no gradient.
    """
    if part.layout == "class numbers":
        raise TaskError(
            f"output '{part.output}' gives the numbers of classes, which cannot be trained: return the logits as "
            "well, and name them with score_output."
        )
    if part.layout == "classes":
        scores = output.movedim(part.class_axis, 1)
        if targets.shape == output.shape:  # one-hot, smoothed or mixed labels
            shares = targets.movedim(part.class_axis, 1).to(output.dtype)
            return -(shares * _log_probabilities(scores)).sum(1).mean()
        ignored = -100 if part.ignored is None else part.ignored
        numbers = _fit(targets, scores.shape[:1] + scores.shape[2:], output).long()
        _check_numbers(numbers, scores.shape[1], ignored)
        total = nn.functional.nll_loss(_log_probabilities(scores), numbers, ignore_index=ignored, reduction="sum")
        return total / (numbers != ignored).sum().clamp_min(1)
    truth = _fit(targets, output.shape, output)
    counts = torch.ones_like(truth, dtype=torch.bool) if part.ignored is None else truth != part.ignored
    if part.layout == "values":
        error = nn.functional.l1_loss if part.metric == "mae" else nn.functional.mse_loss
        total = error(output[counts], truth.to(output.dtype)[counts], reduction="sum")
        return total / counts.sum().clamp_min(1)
    _check_answers(truth[counts], -1 if part.labels == "signs" else 0)
    yes = truth.to(output.dtype).clamp(0, 1)[counts]
    answers = output[counts]
    if part.threshold:
        total = nn.functional.binary_cross_entropy(answers.clamp(0, 1), yes, reduction="sum")
    else:
        total = nn.functional.binary_cross_entropy_with_logits(answers, yes, reduction="sum")
    return total / counts.sum().clamp_min(1)


def _fit(targets: Tensor, shape: torch.Size, output: Tensor) -> Tensor:
    """Return training labels in the shape of the answers; a dimension of size 1 may be there or not.

    Raises:
        DataError: there are more or fewer.
    """
    if targets.numel() != shape.numel():
        raise DataError(
            f"train gives labels of shape {tuple(targets.shape)}, but the network's output has shape "
            f"{tuple(output.shape)}. Labels are class numbers of shape {tuple(shape)}, or one share for each class in "
            "the shape of the output."
        )
    return targets.reshape(shape)


def _check_numbers(numbers: Tensor, classes: int, ignored: int) -> None:
    """Raise DataError if training labels name classes that do not exist; not checked on a GPU, which would wait."""
    if numbers.device.type != "cpu":
        return
    wrong = numbers[(numbers != ignored) & ((numbers < 0) | (numbers >= classes))]
    if len(wrong):
        raise DataError(
            f"train gives the label {int(wrong[0])}, but the network has {classes} classes, 0 to {classes - 1}. "
            "Correct the labels, or name a label that doesn't count with ignore_label."
        )


def _check_answers(labels: Tensor, lowest: int) -> None:
    """Raise DataError if training labels of yes or no are beyond 1; not checked on a GPU, which would wait."""
    if labels.device.type != "cpu":
        return
    wrong = labels[(labels < lowest - _ROUNDING) | (labels > 1 + _ROUNDING)]
    if len(wrong):
        raise DataError(
            f"train gives the label {float(wrong[0]):g}, but the network answers yes or no: labels are {lowest} to 1. "
            "Correct the labels, or name a label that doesn't count with ignore_label."
        )


def _log_probabilities(scores: Tensor) -> Tensor:
    """Return logarithms of probabilities along dimension 1, of logits or of probabilities."""
    return nn.functional.log_softmax(class_logits(scores), 1)


def classification(
    model: nn.Module | Callable[[], nn.Module],
    train: Batches | Callable[[int], Batches],
    eval: Batches,  # noqa: A002 - the word of the field
    **options: Any,
) -> Classification:
    """Make a task of a trained classifier and two data loaders.

    Outputs may be logits or probabilities ``(batch, classes)``, or of every position of a map or a sequence (classes on
    axis 1 or last), or one logit or probability for each sample or for each of several labels. Labels may be class
    numbers, also ``(batch, 1)`` or as floats, one-hot rows, or 0 and 1; 255, -100 and -1 mark positions that don't
    count.

    Args:
        model: The trained model, or a function that builds it; it is called once.
        train: Batches ``(inputs, labels)``, or a function of a seed that returns one epoch of them.
        eval: Batches that decide which trial wins (the selection set); iterated several times.
        options: ``test``, ``name``, ``labels``, ``training``, ``students``, ``budgets``, ``preprocessing``;
            ``score``: ``"accuracy"`` (the default), ``"multilabel"``, ``"f1"`` or ``"miou"``; ``score_output``: the
            name of the output that the labels judge, if there are several; ``ignore_label``: a label that doesn't
            count; ``input_names``, ``output_names``, ``dynamic_axes`` and ``batch_dim`` as members of a ``Task``
            (``edgeopt guide dynamic-sizes``); ``keep``: globs of parameters and modules that no channel is cut from,
            such as ``("head.*",)``; ``min_widths``: glob to the least number of output channels, such as
            ``{"stem.*": 16}``; ``drop_unseen_rows=True``: embedding rows that no training sample reads may go;
            ``unknown_ids``: input name to the id whose row all other ids read then, such as ``{"tokens": 100}``, in
            place of the mean of the dropped rows; ``states``: inputs of a streaming network to the outputs that give
            their next values, such as ``{"state": "next_state"}``; and ``teacher``: an ``.onnx`` file with the model's
            inputs and outputs and a dynamic batch, which every candidate learns from. It only teaches: ``model`` is
            still compressed, and is still the baseline that candidates are compared with. Without a teacher file,
            ``model`` teaches.
    """
    return Classification(model, train, eval, **options)


def regression(
    model: nn.Module | Callable[[], nn.Module],
    train: Batches | Callable[[int], Batches],
    eval: Batches,  # noqa: A002 - the word of the field
    **options: Any,
) -> Regression:
    """Make a task of a trained network that estimates numbers, and two data loaders.

    The score is the mean absolute error in the unit of the labels; lower is better, and the allowed "drop" is how much
    larger the error may become, in the same unit.

    Args:
        model: The trained model, or a function that builds it; it is called once.
        train: Batches ``(inputs, numbers)``, or a function of a seed that returns one epoch of them.
        eval: Batches that decide which trial wins (the selection set); iterated several times.
        options: As those of ``classification``; ``score`` is ``"mae"`` (the default), ``"mse"`` or ``"rmse"``.
    """
    return Regression(model, train, eval, **options)

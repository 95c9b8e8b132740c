"""The loss of a student: a weighted sum over its teacher's outputs and the targets.

The teacher's part is a divergence where an output answers (classes, yes or no, boxes with scores), and the squared
error where it is numbers. What an output is follows from the score of the task, which has looked at its values, or from
the targets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.records.recipe import Distill
from edgeopt.records.scoring import OutputScore
from edgeopt.task import CheckedTask
from edgeopt.task.logits import class_logits, yes_logits
from edgeopt.task.values import flat_outputs

_BOX_NUMBERS = 4
_SMALLEST = 1e-12


def is_classification(output: Tensor, targets: Any) -> bool:
    """Tell whether dimension 1 of ``output`` holds logits of classes, with ``targets`` that name one class each.

    These are class numbers, also with dimensions of 1 as in ``(batch, 1)``, or one-hot rows. A single logit doesn't
    count: its softmax is 1 whatever it is.
    """
    if not isinstance(targets, Tensor) or output.dim() < 2 or output.shape[1] < 2:
        return False
    if targets.shape == output.shape and targets.shape[0] > 0:
        return bool((targets.sum(1) == 1).all()) and bool(((targets == 0) | (targets == 1)).all())
    positions = [size for size in output.shape[2:] if size != 1]
    return (
        not targets.is_floating_point()
        and targets.shape[:1] == output.shape[:1]
        and [size for size in targets.shape[1:] if size != 1] == positions
    )


def soft_loss(output: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the KL divergence from teacher to student at ``temperature``, times its square (Hinton et al., 2015).

    Logits ``(batch, classes, ...)``; mean over all positions.
    """
    student_log = functional.log_softmax(output / temperature, 1)
    teacher_log = functional.log_softmax(teacher / temperature, 1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(1).mean() * temperature**2


def soft_yes_loss(output: Tensor, teacher: Tensor, temperature: float, yes_ratio: float = 0.0) -> Tensor:
    """Return the KL divergence of answers of yes or no at ``temperature``, times its square; mean over all positions.

    Args:
        output: Logits of any shape.
        teacher: Of the same shape.
        temperature: Divides both.
        yes_ratio: Of the teacher's answers over the data. If it is not 0, both answers weigh alike, so that a rare one
            is not lost among the others.
    """
    expected = torch.sigmoid(teacher / temperature)
    loss = functional.binary_cross_entropy_with_logits(output / temperature, expected, reduction="none")
    entropy = functional.binary_cross_entropy_with_logits(teacher / temperature, expected, reduction="none")
    divergence = (loss - entropy) * temperature**2
    if yes_ratio:
        divergence = divergence * torch.where(teacher > 0, 0.5 / yes_ratio, 0.5 / (1 - yes_ratio))
    return divergence.mean()


def relative_error(output: Tensor, teacher: Tensor, dim: int | None = None) -> Tensor:
    """Return the mean squared error over the teacher's mean square; along ``dim``, each slice over its own."""
    error, size = (output - teacher).square(), teacher.square()
    if dim is None:
        return error.mean() / size.mean().clamp_min(_SMALLEST)
    error, size = (values.movedim(dim, 0).flatten(1).mean(1) for values in (error, size))
    return (error / size.clamp_min(_SMALLEST)).mean()


def teacher_loss(step: Distill, part: OutputScore | None, output: Tensor, teacher: Tensor, targets: Any) -> Tensor:
    """Return the weighted loss of one output against the teacher's.

    Args:
        step: Has the weights and the temperature.
        part: How the output is judged; None if that is not known.
        output: Of the student.
        teacher: Of the same shape.
        targets: Of the batch; they show what an output is if ``part`` does not.
    """
    both = step.kl_weight + step.mse_weight
    if part is None:
        if not is_classification(output, targets):
            return both * relative_error(output, teacher)
        return _class_loss(step, output, teacher)
    if part.layout == "classes":
        return _class_loss(step, output.movedim(part.class_axis, 1), teacher.movedim(part.class_axis, 1))
    if part.layout == "yes or no":
        logits, expected = (yes_logits(values, part.threshold) for values in (output, teacher))
        divergence = soft_yes_loss(logits, expected, step.temperature, part.yes_ratio)
        return step.kl_weight * divergence + step.mse_weight * functional.mse_loss(logits, expected)
    if part.layout == "boxes":
        return both * _box_loss(output.movedim(part.class_axis, 1), teacher.movedim(part.class_axis, 1))
    return both * relative_error(output, teacher, part.class_axis if len(part.scales) > 1 else None)


def _class_loss(step: Distill, output: Tensor, teacher: Tensor) -> Tensor:
    """Return the loss of scores of classes on dimension 1, which may be logits or probabilities."""
    logits, expected = class_logits(output, like=teacher), class_logits(teacher)
    divergence = soft_loss(logits, expected, step.temperature)
    return step.kl_weight * divergence + step.mse_weight * functional.mse_loss(logits, expected)


def _box_loss(output: Tensor, teacher: Tensor) -> Tensor:
    """Return the loss of boxes ``(batch, 4 + classes, boxes)``: where a box is counts as much as its best score."""
    place, true_place = output[:, :_BOX_NUMBERS], teacher[:, :_BOX_NUMBERS]
    score, true_score = output[:, _BOX_NUMBERS:], teacher[:, _BOX_NUMBERS:]
    if bool((true_score > 1).any()):  # the number of a class
        return relative_error(output, teacher, 1)
    weight = true_score.amax(1, keepdim=True)
    size = true_place.square().mean().clamp_min(_SMALLEST)
    error = ((place - true_place).square() * weight).mean() / weight.mean().clamp_min(_SMALLEST) / size
    return error + soft_yes_loss(yes_logits(score, 0.5), yes_logits(true_score, 0.5), 1.0)


def distill_loss(
    task: CheckedTask, step: Distill, outputs: Any, teacher_outputs: tuple[Tensor, ...], targets: Any
) -> Tensor:
    """Return the weighted sum of the teacher's part of every output and the task's own loss.

    Classes get the KL divergence, plus the squared error of the logits; numbers, and the next states of a streaming
    network, the squared error, with both weights, relative to the teacher's mean square.
    """
    custom = task.distill_loss(outputs, teacher_outputs, targets)
    if custom is not None:
        return custom
    parts = {} if task.score_kind is None else {part.index: part for part in task.score_kind.parts}
    total = torch.zeros(())
    states = set(task.states.values())
    for index, (output, teacher) in enumerate(zip(flat_outputs(outputs), teacher_outputs, strict=True)):
        if task.output_names[index] in states:
            total = total + (step.kl_weight + step.mse_weight) * relative_error(output, teacher)
        elif output.is_floating_point():
            total = total + teacher_loss(step, parts.get(index), output, teacher, targets)
    if step.hard_weight:
        total = total + step.hard_weight * task.loss(outputs, targets)
    return total

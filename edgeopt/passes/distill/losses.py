"""The loss of a student: a weighted sum over its teacher's outputs and the targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.records.recipe import Distill
from edgeopt.task import CheckedTask
from edgeopt.task.values import flat_outputs


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


def distill_loss(
    task: CheckedTask, step: Distill, outputs: Any, teacher_outputs: tuple[Tensor, ...], targets: Any
) -> Tensor:
    """Return the weighted sum of the teacher's part and the task's own loss.

    If the outputs are logits and the targets integers, the teacher's part is KL divergence plus MSE on the logits.
    Otherwise it is only the mean squared error, with both weights, each output scaled by its teacher's mean square.
    """
    custom = task.distill_loss(outputs, teacher_outputs, targets)
    if custom is not None:
        return custom
    total = torch.zeros(())
    for output, teacher in zip(flat_outputs(outputs), teacher_outputs, strict=True):
        if not output.is_floating_point():
            continue
        if is_classification(output, targets):
            total = total + step.kl_weight * soft_loss(output, teacher, step.temperature)
            total = total + step.mse_weight * functional.mse_loss(output, teacher)
        else:
            scale = teacher.square().mean().clamp_min(1e-12)
            total = total + (step.kl_weight + step.mse_weight) * functional.mse_loss(output, teacher) / scale
    if step.hard_weight:
        total = total + step.hard_weight * task.loss(outputs, targets)
    return total

"""Train a network on its teacher's outputs: warm-up, cosine, best epoch kept, a checkpoint after each epoch.

In: a train and an eval module that share parameters, the training stream and a ``Distill`` step. Out: the modules hold
the best epoch's weights. The same seed on one thread gives the same weights, with or without interruptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import DivergedError
from edgeopt.passes.distill.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from edgeopt.passes.distill.losses import distill_loss
from edgeopt.passes.distill.teacher import TeacherOutputs, to_channels_last
from edgeopt.passes.prune.lasso import GroupLasso
from edgeopt.passes.sparsify import SparsitySchedule, apply_masks
from edgeopt.records.base import Record
from edgeopt.records.recipe import Distill
from edgeopt.task import CheckedTask
from edgeopt.task.values import flat_outputs, to_numpy

_MOMENTUM = 0.9
_GRADIENT_NORM_LIMIT = 5.0
"""A network that was just pruned starts with large gradients; without clipping, the first steps could ruin it."""


class Epoch(Record, frozen=True, kw_only=True):
    """The result of one epoch."""

    loss: float
    score: float


class TrainingResult(Record, frozen=True, kw_only=True):
    """The result of a training; ``best_epoch`` counts from 0."""

    best_epoch: int
    best_score: float
    epochs: tuple[Epoch, ...]


def learning_rate(step: Distill, progress: float) -> float:
    """Return the rate at ``progress`` (0..1): linear warm-up, then a cosine to zero (Loshchilov and Hutter, 2017)."""
    if progress < step.warmup_ratio:
        return step.learning_rate * progress / step.warmup_ratio
    done = (progress - step.warmup_ratio) / (1 - step.warmup_ratio)
    return step.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(step: Distill, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of a ``Distill`` step."""
    if step.optimizer == "adamw":
        return torch.optim.AdamW(parameters, step.learning_rate, weight_decay=step.weight_decay)
    return torch.optim.SGD(
        parameters, step.learning_rate, momentum=_MOMENTUM, weight_decay=step.weight_decay, nesterov=True
    )


def evaluate(module: Callable[..., Any], task: CheckedTask) -> float:
    """Return a torch module's score on the selection set. It picks the best epoch; it never judges a file."""
    with torch.no_grad():
        pairs = [
            (
                task.nest_outputs([to_numpy(value) for value in flat_outputs(module(*to_channels_last(inputs)))]),
                to_numpy(targets),
            )
            for inputs, targets in task.eval_batches()
        ]
    return task.score(pairs)


class Distillation:
    """One training.

    Args:
        train_module: Batch norm and dropout in training mode.
        eval_module: The same parameters, in evaluation mode.
        task: Computes losses and scores.
        step: Epochs, rates, weights.
        stream: Batches with the teacher's outputs.
        sparsity: Which weights are zero in which epoch; None for a dense training.
        lasso: The penalty that shrinks channels, if any.
        checkpoint: File for the state after each epoch.
        progress: Called after each epoch with ``(index, epochs, score)``.
        careful: Train in row-major memory, after a crash in another layout.
    """

    def __init__(
        self,
        train_module: nn.Module,
        eval_module: nn.Module,
        task: CheckedTask,
        step: Distill,
        stream: TeacherOutputs,
        *,
        sparsity: SparsitySchedule | None,
        lasso: GroupLasso | None = None,
        checkpoint: Path,
        progress: Callable[[int, int, float], None],
        careful: bool = False,
    ) -> None:
        self.careful = careful
        self.train_module = train_module
        self.eval_module = eval_module
        self.task = task
        self.step = step
        self.stream = stream
        self.sparsity = sparsity
        self.lasso = lasso
        self.checkpoint = checkpoint
        self.progress = progress
        self.parameters = [value for value in train_module.parameters() if value.requires_grad]
        self.optimizer = make_optimizer(step, self.parameters)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = -1

    def run(self) -> TrainingResult:
        """Train from the checkpoint, if there is one, and leave the best epoch's weights in the modules.

        Raises:
            DivergedError: a loss or a score is not finite.
        """
        for parameter in self.parameters:
            if parameter.dim() == 4 and not self.careful:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.resume()
        for epoch in range(len(self.history), self.step.epochs):
            loss = self.train_epoch(epoch)
            score = evaluate(self.eval_module, self.task)
            self.history.append(Epoch(loss=loss, score=score))
            is_eligible = self.sparsity is None or self.sparsity.is_full(epoch)
            if self.lasso is not None:
                is_eligible = is_eligible and epoch == self.step.epochs - 1  # the last one shrinks channels most
            if is_eligible and (self.best_epoch < 0 or score >= self.history[self.best_epoch].score):
                self.best_epoch = epoch
                self.best = {name: value.detach().clone() for name, value in self.train_module.state_dict().items()}
            self.save()
            self.progress(epoch, self.step.epochs, score)
        self.train_module.load_state_dict(self.best)
        return TrainingResult(
            best_epoch=self.best_epoch,
            best_score=self.history[self.best_epoch].score,
            epochs=tuple(self.history),
        )

    def train_epoch(self, epoch: int) -> float:
        """Train one epoch and return its mean loss."""
        count = self.stream.prepare(epoch)
        torch.manual_seed(epoch)
        masks = self.sparsity.begin_epoch(self.eval_module, epoch) if self.sparsity else {}
        if self.lasso:
            self.lasso.begin_epoch(self.train_module)
        total = 0.0
        for index, (inputs, targets, teacher_outputs) in enumerate(self.stream.batches(epoch)):
            progress = (epoch + index / count) / self.step.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, progress)
            outputs = self.train_module(*(inputs if self.careful else to_channels_last(inputs)))
            loss = distill_loss(self.task, self.step, outputs, teacher_outputs, targets)
            if self.lasso:
                loss = loss + self.lasso.penalty(self.train_module, progress)
            value = loss.item()
            if not math.isfinite(value):
                raise DivergedError(
                    "distill",
                    f"the loss became {value} in epoch {epoch + 1}, step {index + 1}; lower the learning rate.",
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters, _GRADIENT_NORM_LIMIT)
            self.optimizer.step()
            if masks:
                apply_masks(self.train_module, masks)
            total += value
        return total / count

    def save(self) -> None:
        """Write the state after an epoch."""
        groups = {
            "network": dict(self.train_module.state_dict()),
            "optimizer": optimizer_tensors(self.optimizer),
            "best": self.best,
        }
        epochs = [(epoch.loss, epoch.score) for epoch in self.history]
        save_checkpoint(self.checkpoint, groups, {"epochs": epochs, "best_epoch": self.best_epoch})

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        stored = load_checkpoint(self.checkpoint)
        if stored is None:
            return
        groups, facts = stored
        with torch.no_grad():
            for name, value in self.train_module.state_dict().items():
                value.copy_(groups["network"][name])
        restore_optimizer(self.optimizer, groups["optimizer"])
        self.best = groups.get("best", {})  # empty until a sparse training reaches its ratio
        self.best_epoch = int(facts["best_epoch"])
        self.history = [Epoch(loss=loss, score=score) for loss, score in facts["epochs"]]

"""Train a network on its teacher's outputs: warm-up, cosine, an epoch that is kept, a checkpoint after each epoch.

In: a train and an eval module that share parameters, the training stream and a ``Distill`` step. Out: the modules hold
the weights of that epoch (``epoch_choice``), on the CPU. On the CPU, the same seed and number of threads give the same
weights, with or without interruptions. A checkpoint holds no device: a training may go on elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from edgeopt.errors import OutOfTimeError
from edgeopt.passes.distill.averaging import AveragedWeights
from edgeopt.passes.distill.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from edgeopt.passes.distill.compute import CPU, ComputeDevice, move_tensors, one_ahead, with_device
from edgeopt.passes.distill.epoch_choice import EpochChoice, score_epoch
from edgeopt.passes.distill.gradients import GradientStep
from edgeopt.passes.distill.loss_check import LossCheck
from edgeopt.passes.distill.losses import distill_loss
from edgeopt.passes.distill.optimizer import learning_rate, make_optimizer
from edgeopt.passes.distill.outlook import is_hopeless
from edgeopt.passes.distill.ranks import ALONE, Ranks
from edgeopt.passes.distill.rate_trials import JUDGED_BATCHES, TRIAL_STEPS, WARMUP_STEPS, choose_rate
from edgeopt.passes.distill.teacher import TeacherOutputs
from edgeopt.passes.prune.lasso import GroupLasso
from edgeopt.passes.safe_gradients import take_stride_out
from edgeopt.passes.sparsify import SparsitySchedule, apply_masks
from edgeopt.records.base import Record
from edgeopt.records.recipe import Distill
from edgeopt.records.scoring import ScoreFloor
from edgeopt.task import CheckedTask
from edgeopt.task.random_states import seed_generators

_STEPS_BETWEEN_CHECKS = 16
"""On a GPU: reading every loss would make it wait for the host."""
_SEED_STEP = 1_000_003
"""Processes that train together drop other values out."""
_GRADIENT_NORM_LIMIT = 5.0
"""A network that was just pruned starts with large gradients; without clipping, the first steps could ruin it."""
_USEFUL_EPOCHS_RATIO = 0.25
"""Of all epochs: if no floor judges a training that is cut off, those that it must have done to be of use."""

AS_IT_BEGAN = -1
"""In place of the number of an epoch: the weights before the first one."""


class Epoch(Record, frozen=True, kw_only=True):
    """The result of one epoch."""

    loss: float
    score: float


class TrainingResult(Record, frozen=True, kw_only=True):
    """The result of a training; ``best_epoch`` (from 0, or ``AS_IT_BEGAN``) was kept; see ``epoch_choice``."""

    best_epoch: int
    best_score: float
    epochs: tuple[Epoch, ...]
    notes: tuple[str, ...] = ()
    """How the batches were made to fit, for the report."""
    stopped: bool = False
    """Whether it ended early, because it could not reach its floor."""
    ended_after: int | None = None
    """Epochs after which it was cut off, because the time was over."""


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
        compute: Where to train.
        careful: Train in row-major memory and in half batches, after a crash in another layout.
        ranks: The processes that train this network together. The first one evaluates and keeps the checkpoint.
        floor: The score that it must reach; None: whatever comes of it.
        is_over: Tells whether the time of the build is over, before each step.
        may_be_cut_off: Whether the network may then be used as it is: nothing follows that needs a whole training.
        may_keep_start: Whether the network is kept as it begins if every epoch is clearly worse.
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
        compute: ComputeDevice = CPU,
        careful: bool = False,
        ranks: Ranks = ALONE,
        floor: ScoreFloor | None = None,
        is_over: Callable[[], bool] = lambda: False,
        may_be_cut_off: bool = False,
        may_keep_start: bool = False,
    ) -> None:
        self.compute = compute
        self.ranks = ranks
        self.careful = careful
        move_tensors(train_module, compute.device)
        move_tensors(eval_module, compute.device)
        self.train_module = take_stride_out(with_device(train_module, compute.device))
        self.eval_module = with_device(eval_module, compute.device)
        self.task = task
        self.step = step
        self.stream = stream
        self.sparsity = sparsity
        self.lasso = lasso
        self.checkpoint = checkpoint
        self.progress = progress
        self.floor = floor
        self.is_over = is_over
        self.may_be_cut_off = may_be_cut_off
        self.ended_after = step.ended_after
        self.may_keep_start = may_keep_start
        self.parameters = [value for value in train_module.parameters() if value.requires_grad]
        self.optimizer = make_optimizer(step, self.parameters)
        self.gradients = self.gradient_step(self.train_module)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = AS_IT_BEGAN
        self.choice = EpochChoice(task)
        self.average: AveragedWeights | None = None

    def gradient_step(self, module: nn.Module) -> GradientStep:
        """Return what computes losses and gradients of a module."""
        task, step = self.task, self.step
        return GradientStep(
            module,
            self.compute,
            lambda outputs, teacher, targets: distill_loss(task, step, outputs, teacher, targets),
            task.training_step if task.has_training_step else None,
            axes=lambda: task.axes,
            channels_last=not self.careful and self.compute.device.type != "mps",
            parts=2 if self.careful else 1,
            ranks=self.ranks,
        )

    def run(self) -> TrainingResult:
        """Train from the checkpoint, if there is one, and leave the weights of the epoch that is kept in the modules.

        Raises:
            DivergedError: a loss or a score is not finite.
            OutOfTimeError: the time of the build is over, and the network is of no use yet; the checkpoint has the last
                whole epoch.
            StepError: not even one sample fits into the memory.
        """
        layout = torch.contiguous_format if self.careful else torch.channels_last
        for parameter in self.parameters:
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=layout)
        self.average = AveragedWeights(self.train_module, self.step.ema) if self.step.ema > 0 else None
        self.resume()
        self.ranks.copy_first(self.train_module.state_dict())
        if not self.history and self.sparsity is None and self.lasso is None:
            if self.may_keep_start:
                self.keep_start()
            if self.step.find_rate:
                self.find_rate()
        try:
            self.train_epochs()
        except OutOfTimeError:
            if not self.ranks.first(lambda: float(self.is_useful())):
                raise
            self.ended_after = len(self.history)
        self.train_module.load_state_dict(self.best)
        move_tensors(self.train_module, CPU.device)
        move_tensors(self.eval_module, CPU.device)
        if self.best_epoch == AS_IT_BEGAN:
            self.gradients.notes.append("kept as it began: every epoch of the training scored clearly lower")
        return TrainingResult(
            best_epoch=self.best_epoch,
            best_score=self.best_score,
            epochs=tuple(self.history),
            notes=tuple(self.gradients.notes),
            stopped=len(self.history) < self.last_epoch,
            ended_after=self.ended_after,
        )

    @property
    def last_epoch(self) -> int:
        """The number of epochs that are trained; the rate falls over all epochs of the step, even if it was cut off."""
        return self.step.epochs if self.ended_after is None else self.ended_after

    def train_epochs(self) -> None:
        """Train the epochs that are left, unless the floor is out of reach."""
        for epoch in range(len(self.history), self.last_epoch):
            if self.is_hopeless():
                return
            if self.ranks.first(lambda: float(self.is_over())):
                raise self.unfinished(epoch)
            loss = self.train_epoch(epoch)
            self.ranks.average(self.train_module.state_dict())
            if self.average:
                self.ranks.average(self.average.values)
            with self.average.in_use() if self.average else nullcontext():
                self.keep_if_best(epoch, loss)
            if self.ranks.rank == 0:
                self.save()
            self.progress(epoch, self.step.epochs, self.history[-1].score)

    def is_useful(self) -> bool:
        """Tell whether the network of a training that was cut off may keep the limits: its score keeps the floor."""
        if not (self.may_be_cut_off and self.history and self.best):
            return False
        if self.floor is None:
            return len(self.history) >= _USEFUL_EPOCHS_RATIO * self.step.epochs
        return not self.floor.is_missed_by(self.best_score)

    @property
    def best_score(self) -> float:
        """The score of the weights that are kept."""
        if self.best_epoch != AS_IT_BEGAN:
            return self.history[self.best_epoch].score
        return 0.0 if self.choice.best is None else self.choice.best.value  # None on ranks that do not score

    def keep_start(self) -> None:
        """Remember the network as it begins: one that was cut and fitted may be worse after a training."""
        self.ranks.first(lambda: float(self.choice.takes(score_epoch(self.eval_module, self.task, self.compute))))
        self.best = {name: value.detach().cpu().clone() for name, value in self.train_module.state_dict().items()}

    def find_rate(self) -> None:
        """Lower the learning rate if steps at the given one would throw the network back; see ``rate_trials``."""
        start = {name: value.detach().clone() for name, value in self.train_module.state_dict().items()}
        judge = self.gradient_step(self.eval_module)
        count = self.stream.prepare(0)
        judged = [self.compute.put(batch) for batch in islice(self.stream.batches(0), JUDGED_BATCHES)]

        def restore() -> None:
            self.train_module.load_state_dict(start)
            self.optimizer = make_optimizer(self.step, self.parameters)

        def loss() -> float:
            return self.ranks.first(lambda: sum(judge.judge(batch) for batch in judged) / len(judged))

        def loss_after(rate: float) -> float:
            restore()
            seed_generators(_SEED_STEP * self.ranks.rank)
            batches = map(self.compute.put, islice(self.stream.batches(0), min(TRIAL_STEPS, count)))
            for index, batch in enumerate(self.ranks.while_all(batches)):
                if self.ranks.first(lambda: float(self.is_over())):
                    raise self.unfinished(0)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * min(1.0, (index + 1) / WARMUP_STEPS)
                # the sum over all ranks, which therefore leave together
                if not math.isfinite(float(self.gradients.run(batch, None, lambda _: None))):
                    return math.inf
                self.apply_gradients()
            return loss()

        given = self.step.learning_rate
        self.set_rate(choose_rate(given, loss(), loss_after))
        restore()
        if (found := self.step.learning_rate) < given:
            self.gradients.notes.append(
                f"trained at a learning rate of {found:.2g}: at {given:.2g}, short trials lost what the network knew"
            )

    def set_rate(self, rate: float) -> None:
        """Train at another highest learning rate than that of the step."""
        if rate != self.step.learning_rate:
            self.step = msgspec.structs.replace(self.step, learning_rate=rate)

    def unfinished(self, epoch: int) -> OutOfTimeError:
        """Return the error of a training that ends in an epoch because the time is over."""
        return OutOfTimeError(
            "distill", f"the time was over in epoch {epoch + 1} of {self.step.epochs}; with more time it goes on there."
        )

    def is_hopeless(self) -> bool:
        """Tell whether the network cannot reach its floor any more; zeros and shrunken channels cost score at first."""
        if self.floor is None or not self.step.may_stop or self.sparsity is not None or self.lasso is not None:
            return False
        rate_ratio = learning_rate(self.step, len(self.history) / self.step.epochs) / self.step.learning_rate
        return is_hopeless([epoch.score for epoch in self.history], self.step.epochs, self.floor, rate_ratio)

    def keep_if_best(self, epoch: int, loss: float) -> None:
        """Evaluate an epoch, and remember its weights unless an earlier one was better by more than noise."""
        is_eligible = self.sparsity is None or self.sparsity.is_full(epoch)
        if self.lasso is not None:
            is_eligible = is_eligible and epoch == self.step.epochs - 1  # the last one shrinks channels most
        is_kept = False

        def score() -> float:
            nonlocal is_kept
            found = score_epoch(self.eval_module, self.task, self.compute)
            is_kept = is_eligible and self.choice.takes(found)
            return found.value

        self.history.append(Epoch(loss=loss, score=self.ranks.first(score)))
        if self.ranks.first(lambda: float(is_kept)):
            self.best_epoch = epoch
            self.best = {name: value.detach().cpu().clone() for name, value in self.train_module.state_dict().items()}

    def train_epoch(self, epoch: int) -> float:
        """Train one epoch and return its mean loss."""
        count = self.stream.prepare(epoch)
        seed_generators(epoch + _SEED_STEP * self.ranks.rank)
        masks = self.sparsity.begin_epoch(self.eval_module, epoch) if self.sparsity else {}
        self.ranks.copy_first(masks)
        if self.lasso:
            self.lasso.begin_epoch(self.train_module)
        losses = LossCheck(epoch, 1 if self.compute.is_cpu else _STEPS_BETWEEN_CHECKS)
        batches = one_ahead(map(self.compute.put, self.stream.batches(epoch)))
        for index, batch in enumerate(self.ranks.while_all(batches)):
            if self.ranks is ALONE and self.is_over():
                raise self.unfinished(epoch)
            progress = (epoch + min(1.0, index / count)) / self.step.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, progress)
            penalty = partial(self.lasso.penalty, self.train_module, progress) if self.lasso else None
            losses.add(self.gradients.run(batch, penalty, losses.check))
            self.apply_gradients()
            if masks:
                apply_masks(self.train_module, masks)
            if self.average:
                self.average.update()
                self.average.apply_masks(masks)
        return losses.mean()

    def apply_gradients(self) -> None:
        """Make an optimizer step with the gradients, clipped."""
        scaler = self.gradients.scaler
        scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, _GRADIENT_NORM_LIMIT)
        scaler.step(self.optimizer)
        scaler.update()

    def save(self) -> None:
        """Write the state after an epoch."""
        groups = {
            "network": dict(self.train_module.state_dict()),
            "optimizer": optimizer_tensors(self.optimizer),
            "best": self.best,
            "choice": self.choice.tensors(),
        }
        facts: dict[str, Any] = {
            "epochs": [(epoch.loss, epoch.score) for epoch in self.history],
            "best_epoch": self.best_epoch,
            "scaler": self.gradients.scaler.state_dict(),
            "parts": self.gradients.parts,
            "notes": self.gradients.notes,
            "rate": self.step.learning_rate,
        }
        if self.average:
            groups["average"] = self.average.values
            facts["average_steps"] = self.average.steps
        save_checkpoint(self.checkpoint, groups, facts)

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
        self.choice.restore(groups.get("choice", {}))
        self.history = [Epoch(loss=loss, score=score) for loss, score in facts["epochs"]]
        self.set_rate(float(facts.get("rate", self.step.learning_rate)))
        if facts["scaler"] and self.gradients.scaler.is_enabled():
            self.gradients.scaler.load_state_dict(facts["scaler"])
        if self.average and "average" in groups:
            self.average.restore(groups["average"], int(facts["average_steps"]))
        self.gradients.parts = max(self.gradients.parts, int(facts["parts"]))
        self.gradients.notes = list(facts["notes"])

"""``Task``: what a user writes, and ``Training``: how its candidates are trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, get_args

import msgspec
from torch import Tensor, nn

from edgeopt.errors import TaskError
from edgeopt.records.base import Record
from edgeopt.records.preprocessing import ImagePreprocessing, Preprocessing, SoundPreprocessing
from edgeopt.records.recipe import Importance, Optimizer
from edgeopt.records.unseen_rows import UnseenRows
from edgeopt.records.width_rules import WidthRules


class Training(Record, frozen=True, kw_only=True):
    """How the candidates of a task are trained, and how their channels are scored for pruning."""

    epochs: int = 10
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.05
    find_rate: bool = False
    """Whether ``learning_rate`` is only the highest: a network that loses at it what it knows, as short trials show, is
    trained at a lower one."""
    weight_decay: float = 5e-4
    temperature: float = 4.0
    kl_weight: float = 0.9
    mse_weight: float = 0.0
    hard_weight: float = 0.1
    importance: Importance = Importance()
    """How channels are scored before some are removed."""
    group_lasso: float = 0.0
    """If above 0, a quarter of the epochs comes before pruning and shrinks channels with a penalty of this strength."""
    min_steps: int = 1000
    """A small data set has few steps an epoch: there are more epochs then, up to three times as many, until a training
    has this many steps. Not with ``--quick``."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:N``, ``mps``, or ``auto``: a CUDA device if there is one, else an Apple GPU, else the
    processor. ``auto`` and ``cuda`` use all CUDA devices, one for each candidate."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of products in training (automatic mixed precision). ``auto``: bfloat16 or float16 on CUDA devices, bfloat16
    on processors that a short trial finds faster and as exact with it, else float32."""
    ema: float = 0.0
    """If above 0 (such as 0.999), the moving average of the weights is evaluated and kept, with this decay a step."""
    processes: int = 1
    """That train one candidate together, each on a CUDA device of its own, as torchrun starts them: each takes its part
    of every batch. For networks that train too slowly on one; by default each device trains another candidate."""


def check_training(training: Any, spec: str) -> Training:
    """Return a task's training if each value is one that is known.

    Args:
        training: The member ``training`` of a task.
        spec: Names the task in errors.

    Raises:
        TaskError: it is not a ``Training``, or a value has another type or is not among the words of its field.
    """
    if not isinstance(training, Training):
        raise TaskError(f"{spec}: training has to be an edgeopt.Training(...), not {type(training).__name__}.")
    try:
        return msgspec.convert(msgspec.to_builtins(training), type(training))
    except (msgspec.ValidationError, TypeError) as error:
        known = f" Optimizers are {', '.join(get_args(Optimizer))}." if "optimizer" in str(error) else ""
        raise TaskError(f"{spec}: training: {error}.{known}") from error


def read_preprocessing(task: Any, spec: str) -> str | Preprocessing | dict[str, Preprocessing]:
    """Return the member ``preprocessing`` of a task: words, or data; for the first input, or a dict by input name.

    Raises:
        TaskError: it is something else.
    """
    given = getattr(task, "preprocessing", None) or ""
    if isinstance(given, str | ImagePreprocessing | SoundPreprocessing):
        return given
    kinds = (ImagePreprocessing, SoundPreprocessing)
    if isinstance(given, Mapping) and all(isinstance(value, str) for value in given):
        hows = list(given.values())
        if all(isinstance(how, kinds) for how in hows):
            return dict(given)
    raise TaskError(
        f"{spec}: preprocessing has to be an edgeopt.ImagePreprocessing(...), an edgeopt.SoundPreprocessing(...), a "
        f"dict of these by input name, or words for people; found {given!r:.80}."
    )


def read_width_rules(task: Any, spec: str) -> WidthRules:
    """Return the members ``keep`` and ``min_widths`` of a task.

    Raises:
        TaskError: ``keep`` is not a list of globs, or ``min_widths`` not a dict from globs to whole numbers.
    """
    keep, widths = getattr(task, "keep", None) or (), getattr(task, "min_widths", None) or {}
    try:
        return msgspec.convert({"keep": keep, "min_widths": widths}, WidthRules)
    except msgspec.ValidationError as error:
        raise TaskError(
            f'{spec}: keep has to be a list of globs such as ("head.*",), and min_widths a dict from globs to channels '
            f'such as {{"stem.*": 16}}; found keep={keep!r:.80} and min_widths={widths!r:.80} ({error}).'
        ) from error


def read_input_sizes(task: Any, spec: str) -> tuple[tuple[int, int], ...] | None:
    """Return the member ``input_sizes`` of a task; None if it has none.

    Raises:
        TaskError: it isn't a sequence of heights and widths.
    """
    given = getattr(task, "input_sizes", None)
    try:
        sizes = msgspec.convert(given, tuple[tuple[int, int], ...] | None)
    except msgspec.ValidationError as error:
        sizes, reason = (), f" ({error})"
    else:
        reason = "" if all(min(size) > 0 for size in sizes or ()) else " (sizes are positive)"
    if reason:
        raise TaskError(
            f"{spec}: input_sizes has to list heights and widths of the image, such as ((192, 192), (160, 160)); found "
            f"{given!r:.80}{reason}."
        )
    return sizes


def read_unseen_rows(task: Any, spec: str) -> UnseenRows:
    """Return the members ``drop_unseen_rows`` and ``unknown_ids`` of a task.

    Raises:
        TaskError: ``drop_unseen_rows`` is not a bool, or ``unknown_ids`` not a dict from inputs to whole numbers.
    """
    drop, unknown = getattr(task, "drop_unseen_rows", False), getattr(task, "unknown_ids", None) or {}
    try:
        return msgspec.convert({"drop": drop, "unknown_ids": unknown}, UnseenRows)
    except msgspec.ValidationError as error:
        raise TaskError(
            f"{spec}: drop_unseen_rows has to be True or False, and unknown_ids a dict from inputs to ids such as "
            f'{{"tokens": 100}}; found drop_unseen_rows={drop!r:.80} and unknown_ids={unknown!r:.80} ({error}).'
        ) from error


class Task(Protocol):
    """A user's task: these methods, and any of the optional members below.

    Inputs, outputs and targets may be nested as the model and the loaders have them (``edgeopt.task.nesting``).
    ``pairs`` are outputs and targets, as arrays in batches.

    Data:
        test_batches(): The test set, which is looked at once, in the form of ``eval_batches()``.
        calibration_batches(): Batches that calibrate int8; otherwise training batches do.
        golden_inputs(): A batch that the bundle may show; otherwise it shows samples that select.

    Score:
        score_direction: ``"higher"`` or ``"lower"``: which is better.
        sample_scores(pairs): One score per sample, for paired intervals; it counts only if its mean is the score.
        sample_statistics(pairs): A row of numbers for each sample, with one of the next two: the fast way to the
            interval of a score that isn't a mean.
        score_statistics(sums): The score from the sums of these rows.
        score_rows(rows): The score from the rows of any draw of samples, if sums are not enough.

    Training:
        training: An ``edgeopt.Training``.
        distill_loss(outputs, teacher_outputs, targets): The loss of a batch with a teacher, a scalar.
        training_step(model, inputs, targets, teacher_outputs): The loss of a batch, in place of both losses: for mixup,
            auxiliary outputs and the like.
        teacher: Path of an ``.onnx`` file that teaches instead of the trained model, which is still what is compressed
            and compared with.
        students: Name to a function that builds a smaller network.

    Inputs and outputs:
        input_names, output_names: Of the graph.
        batch_dim: The batch dimension of the inputs if it is not found, or a dict of it by input name (None: all
            samples share the input).
        dynamic_axes: By input name, dimensions besides the batch whose size may change:
            ``{"tokens": {1: ("length", 1, 512)}}``.
        states: Input name to the output that gives its next value (``edgeopt.task.states``).

    What may be cut:
        keep: Globs of parameters and modules that no channel is cut from: ``("head.*",)``.
        min_widths: Glob to the least number of output channels: ``{"stem.*": 16}``.
        drop_unseen_rows: True if embedding rows that no training sample reads may go.
        unknown_ids: Input name to the id whose row all other ids read then: ``{"tokens": 100}``.
        input_sizes: Heights and widths to which the image may be shrunk inside the network, ``((192, 192),)``; the
            file's own input keeps its size. Without it, three quarters and a half are tried if latency asks for it; an
            empty list forbids it.
        budgets: Target name to a ``Budget``, the limits of this task on it.

    For the app:
        labels: Names of the classes.
        preprocessing: How an app makes the first input: an ``edgeopt.ImagePreprocessing``, an
            ``edgeopt.SoundPreprocessing``, a dict of these by input name, or words.
        postprocessing: What an app does with the outputs, in words.
        licence: Of the model and the data, for the model card.
    """

    name: str

    def build_model(self) -> nn.Module:
        """Return the trained model."""

    def example_inputs(self) -> Any:
        """Return one batch of inputs: a tensor, a tuple, or a dict by the parameters of ``forward``.

        Two samples or more show which dimension is the batch.
        """

    def train_batches(self, seed: int) -> Iterable[Any]:
        """Return one epoch: batches of ``(inputs, targets)``, or dicts with both (``edgeopt.task.batches``)."""

    def eval_batches(self) -> Iterable[Any]:
        """Return the selection set, which decides, in batches of the same form."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the training loss, a scalar."""

    def score(self, pairs: Iterable[tuple[Any, Any]]) -> float:
        """Return the score of ``(outputs, targets)`` pairs of arrays over the whole set.

        Higher is better, unless the task has ``score_direction = "lower"``.
        """

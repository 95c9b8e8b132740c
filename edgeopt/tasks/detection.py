"""Tasks from a detector and two data loaders: boxes with classes, as many as an image has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.errors import DataError, TaskError
from edgeopt.scoring.average_precision import check_evaluator, match_rows, mean_average_precision, score_of_matches
from edgeopt.task.nesting import tensors_of
from edgeopt.task.values import describe_value, to_numpy
from edgeopt.tasks.box_targets import BoxBatches, Seen, check_boxes, check_detections
from edgeopt.tasks.detection_losses import detection_distill_loss, detection_loss
from edgeopt.tasks.loaders import EXAMPLES, Batches, LoaderTask
from edgeopt.tasks.peaks import SHOWN_SCORE, decode_peaks

_Floats = NDArray[np.float64]
_Pairs = Iterable[tuple[Any, Sequence[Mapping[str, Any]]]]
_Loss = Callable[..., Tensor]
_STRIDE_WORDS = "the pixels from one place of the heat-map to the next"


class Detection(LoaderTask):
    """A ``Task`` whose outputs become boxes, scored by the mean average precision at an overlap of 0.5.

    Outputs are the two maps that ``edgeopt.tasks.peaks`` describes, or whatever the user's own functions read.
    """

    score_direction = "higher"

    def __init__(
        self,
        *args: Any,
        stride: int | None = None,
        min_score: float = SHOWN_SCORE,
        decode: Callable[[Any], Sequence[Mapping[str, Any]]] | None = None,
        loss: _Loss | None = None,
        distill_loss: _Loss | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **{"name": "detection", **options})
        check_evaluator(self.name)
        if decode is not None and loss is None:
            raise TaskError(
                f"{self.name}: decode reads outputs of your own form, so the loss has to be your own too: give "
                "loss(outputs, targets), and perhaps distill_loss(outputs, teacher_outputs, targets)."
            )
        if not 0 < min_score < 1:
            raise TaskError(
                f"{self.name}: min_score is {min_score!r:.80}, but the least probability of a box that an app shows is "
                "between 0 and 1: give such a number, or leave it out."
            )
        self.min_score = float(min_score)
        self._stride, self._decode, self._loss, self._distill_loss = stride, decode, loss, distill_loss

    @property
    def reads_maps(self) -> bool:
        """Whether boxes are read from heat-map and sides, and not by the user's own ``decode``."""
        return self._decode is None

    @property
    def postprocessing(self) -> str:
        """How an app reads the outputs."""
        if self._decode is not None:
            return "boxes, as decode() of the task reads them"
        return (
            "a heat-map of logits, one map per class, and the logarithms of the distances from the middle of a place "
            f"to the left, top, right and bottom of a box, in steps of {self.stride} pixels. A place of the heat-map "
            "that is as high as its eight neighbours is an object; its sigmoid is the score (edgeopt.tasks.peaks)"
        )

    def example_inputs(self) -> Any:
        """Return the first evaluation images, at most eight."""
        for images, _ in self.eval_batches():
            return images[:EXAMPLES] if isinstance(images, Tensor | np.ndarray) else images
        raise TaskError(f"{self.name}: the evaluation batches are empty.")

    def train_batches(self, seed: int) -> Batches:
        """Return one epoch, with targets as a list of dicts."""
        return BoxBatches(self, "train", super().train_batches(seed))

    def eval_batches(self) -> Batches:
        """Return the selection set, which decides."""
        return BoxBatches(self, "eval", super().eval_batches())

    def test_batches(self) -> Batches | None:
        """Return the test set, which is looked at once."""
        batches = super().test_batches()
        return None if batches is None else BoxBatches(self, "test", batches)

    @cached_property
    def stride(self) -> int:
        """Pixels from one place of the heat-map to the next: as given, or as the network has it.

        Raises:
            TaskError: the sizes of image and heat-map fit no stride.
        """
        if self._stride is not None:
            return self._stride
        images = self.example_inputs()
        if not isinstance(images, Tensor | np.ndarray):
            raise TaskError(f"{self.name}: inputs are {describe_value(images)}. Give stride=N, {_STRIDE_WORDS}.")
        images = torch.as_tensor(images)[:1]
        network = copy.deepcopy(self.build_model()).eval()  # the user's own may be in training
        device = next((value.device for value in network.parameters()), images.device)
        with torch.no_grad():
            heatmap, _ = self._maps(network(images.to(device)))
        return find_stride(tuple(images.shape[-2:]), tuple(heatmap.shape[-2:]), self.name)

    def loss(self, outputs: Any, targets: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the training loss: the user's own, or that of heat-map and boxes.

        Raises:
            DataError: targets are not what they should be.
        """
        if self._loss is not None:
            return self._loss(outputs, targets)
        heatmap, sides = self._maps(outputs)
        check_boxes(targets, f"{self.name}: train", self._seen(heatmap))
        return detection_loss(heatmap, sides, targets, self.stride)

    @property
    def distill_loss(self) -> _Loss | None:
        """The loss against the teacher's outputs; None leaves outputs of the user's own form to edgeopt."""
        return self._distill_loss or (self._taught_loss if self._decode is None else None)

    def _taught_loss(self, outputs: Any, teacher: Any, targets: Sequence[Mapping[str, Any]]) -> Tensor:
        taught = detection_distill_loss(*self._maps(outputs), *self._maps(teacher))
        return self.training.kl_weight * taught + self.training.hard_weight * self.loss(outputs, targets)

    def score(self, pairs: _Pairs) -> float:
        """Return the mean average precision of boxes at an intersection over union of 0.5."""
        return mean_average_precision(*self._boxes(pairs))

    def sample_statistics(self, pairs: _Pairs) -> _Floats:
        """Return the matches of each image."""
        return match_rows(*self._boxes(pairs))

    def score_rows(self, rows: _Floats) -> float:
        """Return the score of images from their matches."""
        return score_of_matches(rows)

    def _boxes(self, pairs: _Pairs) -> tuple[list[Any], list[Any]]:
        """Return the boxes that were found, and those that should be, of all images.

        Raises:
            DataError: targets are not what they should be, or have no box.
            TaskError: ``decode`` returns something else than detections for each image.
        """
        found: list[Any] = []
        truth: list[Any] = []
        for outputs, targets in pairs:
            seen = None
            if self._decode is not None:
                boxes = self._decode(outputs)
                check_detections(boxes, len(targets), f"{self.name}: decode()")
            else:
                heatmap, sides = self._maps(outputs)
                boxes, seen = decode_peaks(heatmap, sides, self.stride), self._seen(heatmap)
            check_boxes(targets, f"{self.name}: eval", seen)
            found += [to_numpy(one) for one in boxes]
            truth += [to_numpy(one) for one in targets]
        if not any(np.size(one["labels"]) for one in truth):
            raise DataError(f"{self.name}: none of the {len(truth):,} evaluation images has a box to find.")
        return found, truth

    def _seen(self, heatmap: Any) -> Seen:
        """Return what the network sees: its classes, and the size of its images."""
        height, width = (count * self.stride for count in heatmap.shape[-2:])
        return Seen(classes=heatmap.shape[1], height=height, width=width)

    def _maps(self, outputs: Any) -> tuple[Any, Any]:
        """Return heat-map and sides.

        Raises:
            TaskError: the outputs are not these two.
        """
        maps = tensors_of(outputs)
        if len(maps) == 2 and all(one.ndim == 4 for one in maps):
            heatmap, sides = maps
            if sides.shape[1] == 4 and heatmap.shape[-2:] == sides.shape[-2:]:
                return heatmap, sides
        raise TaskError(
            f"{self.name}: the model returns {describe_value(outputs)}. Boxes are read from two outputs, a heat-map "
            "(N, classes, H, W) and then sides (N, 4, H, W); for others give decode=, which returns a dict with boxes, "
            "scores and labels for each image, and loss= (`edgeopt guide detection`)."
        )


def find_stride(image: tuple[int, ...], places: tuple[int, ...], source: str) -> int:
    """Return the pixels from one place of a map to the next, from the height and width of image and map.

    Raises:
        TaskError: no number fits both, or several do.
    """
    fitting = [
        stride
        for stride in range(1, 2 * max(image) + 1)
        if tuple(size // stride for size in image) == places or tuple(-(-size // stride) for size in image) == places
    ]
    powers = [stride for stride in fitting if stride & (stride - 1) == 0] or fitting
    if len(powers) != 1:
        raise TaskError(
            f"{source}: an image of {image[0]}x{image[1]} has a heat-map of {places[0]}x{places[1]}, from which the "
            f"stride does not follow. Give stride=N, {_STRIDE_WORDS}."
        )
    return powers[0]


def detection(
    model: nn.Module | Callable[[], nn.Module],
    train: Batches | Callable[[int], Batches],
    eval: Batches,  # noqa: A002 - the word of the field
    **options: Any,
) -> Detection:
    """Make a task of a trained detector and two data loaders.

    The score is the mean average precision at an intersection over union of 0.5 (COCO's; ``pip install
    faster-coco-eval``), and its intervals are those of a bootstrap over images. The teacher's part of the training
    loss compares its heat-maps, and its boxes as far as it is certain of them.

    Args:
        model: The trained model, or a function that builds it; it is called once. It takes images ``(N, 3, H, W)`` and
            returns two maps, with a place for each square of some pixels: a heat-map of logits ``(N, classes, h, w)``,
            and ``(N, 4, h, w)``, the natural logarithms of the distances from the middle of a place to the left, top,
            right and bottom of the box, in strides. Detectors of another form need ``decode`` and ``loss``.
        train: Batches ``(images, targets)``, or a function of a seed that returns one epoch of them. Images are a
            tensor, or a list of tensors of one size. Targets are a list with a dict for each image: ``boxes`` (N, 4),
            left, top, right and bottom in pixels; ``labels`` (N,), class numbers from 0; and perhaps ``iscrowd`` (N,),
            true for boxes that need not be found.
        eval: Batches that decide which trial wins (the selection set); iterated several times.
        options: ``stride``: pixels from one place of the maps to the next, if the sizes of image and map do not tell;
            ``min_score``: the least probability of boxes that an app shows, 0.3 by default (the score counts all);
            ``decode(outputs)``: from outputs as arrays, in the nesting of the model, to a list with a dict of
            ``boxes``, ``scores`` and ``labels`` for each image; ``loss(outputs, targets)`` and
            ``distill_loss(outputs, teacher_outputs, targets)`` in place of those above; and those of ``classification``
            except for ``score``, ``score_output`` and ``ignore_label``.

    Raises:
        TaskError: ``faster-coco-eval`` is not installed, or ``decode`` was given without ``loss``.
    """
    return Detection(model, train, eval, **options)

"""Tasks from a segmentation network and two data loaders: every pixel gets a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from edgeopt.records.scoring import ScoreName
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.loaders import Batches


class Segmentation(Classification):
    """A ``Task`` whose outputs name a class for each pixel, scored by the mean intersection over union."""

    def __init__(self, *args: Any, score: ScoreName | None = "miou", **options: Any) -> None:
        super().__init__(*args, score=score or "miou", **{"name": "segmentation", **options})

    @property
    def postprocessing(self) -> str:
        """How an app reads the outputs."""
        part = self.score_kind.parts[0] if self.score_kind else None
        if part is None or part.layout == "classes":
            return "logits, one per class and pixel: the largest along the class axis is the answer"
        return super().postprocessing


def segmentation(
    model: nn.Module | Callable[[], nn.Module],
    train: Batches | Callable[[int], Batches],
    eval: Batches,  # noqa: A002 - the word of the field
    **options: Any,
) -> Segmentation:
    """Make a task of a trained segmentation network and two data loaders.

    The score is the mean intersection over union of the classes that occur, over the whole set, and its intervals are
    those of a bootstrap over images. The teacher's part of the training loss is the divergence of each pixel's classes.

    Args:
        model: The trained model, or a function that builds it; it is called once. Its output is ``(N, classes, H, W)``,
            or has its classes on the last axis.
        train: Batches ``(images, labels)``, or a function of a seed that returns one epoch of them. Labels are class
            numbers ``(N, H, W)``; 255, -100 and -1 mark pixels that don't count, others with ``ignore_label``.
        eval: Batches that decide which trial wins (the selection set); iterated several times.
        options: As those of ``classification``; ``score`` is ``"miou"`` (the default), ``"accuracy"`` or ``"f1"``.
    """
    return Segmentation(model, train, eval, **options)

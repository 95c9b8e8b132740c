"""A ready task for a car: boxes of cars and pedestrians in street scenes (CamVid), and a small anchor-free detector.

Boxes come from the classes of pixels: each connected region is an object. So cars that overlap in the image are one
object, and a car behind a pole may be two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.task import Training
from edgeopt.tasks.detection import Detection
from edgeopt.tasks.networks.detector import SmallDetector
from edgeopt.tasks.networks.narrow import narrow
from edgeopt.tasks.ready import augment, camvid
from edgeopt.tasks.ready.camvid_segmentation import SCENE_PREPROCESSING, scene_tensors
from edgeopt.tasks.ready.regions import find_boxes
from edgeopt.tasks.ready.teachers import load_teacher

BOXES_NAME = "camvid_detection"
OBJECT_CLASSES = ("car", "pedestrian")
MIN_OBJECT_AREA = 60
"""Pixels: a pedestrian of 5x15. Smaller regions are specks, and people that nobody can tell from a post."""
_NUMBERS = tuple(camvid.SCENE_CLASSES.index(name) for name in OBJECT_CLASSES)
_STRIDE = 4
_BATCH_SIZE = 8
_EVAL_BATCH_SIZE = 16
_EXAMPLES = 4
_CALIBRATION_STEP = 3
"""Neighbours are frames of one drive."""
_BoxBatch = tuple[Tensor, list[dict[str, Tensor]]]


@cache
def scene_boxes(part: camvid.ScenePart) -> tuple[dict[str, Tensor], ...]:
    """Return the boxes of each scene of a part."""
    _, labels = scene_tensors(part)
    return tuple(find_boxes(scene, _NUMBERS, MIN_OBJECT_AREA) for scene in labels.numpy())


def box_batches(part: camvid.ScenePart, step: int = 1) -> list[_BoxBatch]:
    """Return every ``step``-th scene of a part in order, in batches."""
    images, boxes = scene_tensors(part)[0][::step], scene_boxes(part)[::step]
    starts = range(0, len(images), _EVAL_BATCH_SIZE)
    return [(images[at : at + _EVAL_BATCH_SIZE], list(boxes[at : at + _EVAL_BATCH_SIZE])) for at in starts]


class CamVidDetection(Detection):
    """CamVid with the detector that ``tools/train_teacher.py`` has trained; see ``camvid`` for its parts.

    Args:
        model: Makes another network than the trained one.
    """

    def __init__(self, model: Callable[[], nn.Module] | None = None) -> None:
        super().__init__(
            model or self.load_network,
            self.draw_epoch,
            eval=(),
            stride=_STRIDE,
            name=BOXES_NAME,
            labels=OBJECT_CLASSES,
            training=Training(epochs=24, optimizer="adamw", learning_rate=3e-3, weight_decay=0.01),
            preprocessing=SCENE_PREPROCESSING,
        )

    @staticmethod
    def make_network(width_ratio: float = 1.0) -> nn.Module:
        """Return the detector with initial weights; its channels times ``width_ratio``."""
        stem, *widths, pyramid = narrow((24, 32, 64, 128, 160, 64), width_ratio)
        return SmallDetector(len(OBJECT_CLASSES), stem, widths, pyramid)

    @classmethod
    def load_network(cls) -> nn.Module:
        """Build the detector and load its weights."""
        return load_teacher(BOXES_NAME, cls.make_network())

    @staticmethod
    def draw_epoch(seed: int) -> Iterator[_BoxBatch]:
        """Yield the training scenes in random order, mirrored, cut and lit at random; the same for the same seed.

        Boxes are those of the regions in the changed scenes.
        """
        images, labels = scene_tensors("train")
        generator = torch.Generator().manual_seed(seed)
        for chosen in torch.split(torch.randperm(len(images), generator=generator), _BATCH_SIZE):
            changed, regions = augment.change_scenes(images[chosen], labels[chosen], generator)
            yield changed, [find_boxes(scene, _NUMBERS, MIN_OBJECT_AREA) for scene in regions.numpy()]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return the first selection scenes."""
        return (scene_tensors("selection")[0][:_EXAMPLES],)

    def train_batches(self, seed: int) -> Iterable[Any]:
        """Return one epoch of changed training scenes."""
        return self.draw_epoch(seed)

    def eval_batches(self) -> Iterable[Any]:
        """Return the selection scenes."""
        return box_batches("selection")

    def test_batches(self) -> Iterable[Any]:
        """Return the test scenes."""
        return box_batches("test")

    def calibration_batches(self) -> Iterable[Any]:
        """Return training scenes as they are: calibration needs scenes like those the network will see."""
        return box_batches("train", step=_CALIBRATION_STEP)

"""A ready task for a car: eleven classes of street scenes, one for each pixel (CamVid), and a small U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

from edgeopt.records.preprocessing import ImagePreprocessing
from edgeopt.task import Training
from edgeopt.tasks.networks.narrow import narrow
from edgeopt.tasks.networks.unet import SmallUNet
from edgeopt.tasks.ready import augment, camvid
from edgeopt.tasks.ready.teachers import load_teacher
from edgeopt.tasks.segmentation import Segmentation

SCENES_NAME = "camvid_segmentation"
_BATCH_SIZE = 8
_EVAL_BATCH_SIZE = 16
_EXAMPLES = 4
_CALIBRATION_STEP = 3
"""Neighbours are frames of one drive."""
_MEAN, _STD = 0.42, 0.3
"""Of all channels of the training images, in 0..1."""
SCENE_PREPROCESSING = ImagePreprocessing(height=180, width=240, mean=(_MEAN,), std=(_STD,))


@cache
def scene_tensors(part: camvid.ScenePart) -> tuple[Tensor, Tensor]:
    """Return a part as normalized images ``(n, 3, 180, 240)`` and int64 labels ``(n, 180, 240)``."""
    images, labels = camvid.load_scenes(part)
    return (torch.from_numpy(images).float().div(255) - _MEAN) / _STD, torch.from_numpy(labels).long()


def scene_batches(part: camvid.ScenePart, step: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Return every ``step``-th scene of a part in order, in batches."""
    images, labels = (torch.split(values[::step], _EVAL_BATCH_SIZE) for values in scene_tensors(part))
    return list(zip(images, labels, strict=True))


class CamVidSegmentation(Segmentation):
    """CamVid with the U-Net that ``tools/train_teacher.py`` has trained; see ``camvid`` for its parts.

    Args:
        model: Makes another network than the trained one.
    """

    def __init__(self, model: Callable[[], nn.Module] | None = None) -> None:
        super().__init__(
            model or self.load_network,
            self.draw_epoch,
            eval=(),
            name=SCENES_NAME,
            labels=camvid.SCENE_CLASSES,
            ignore_label=camvid.VOID,
            training=Training(epochs=24, learning_rate=0.05),
            preprocessing=SCENE_PREPROCESSING,
        )

    @staticmethod
    def make_network(width_ratio: float = 1.0) -> nn.Module:
        """Return the U-Net with initial weights; its channels times ``width_ratio``."""
        stem, *widths = narrow((16, 24, 48, 96, 160), width_ratio)
        return SmallUNet(len(camvid.SCENE_CLASSES), stem, widths)

    @classmethod
    def load_network(cls) -> nn.Module:
        """Build the U-Net and load its weights."""
        return load_teacher(SCENES_NAME, cls.make_network())

    @staticmethod
    def draw_epoch(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training scenes in random order, mirrored, cut and lit at random; the same for the same seed."""
        images, labels = scene_tensors("train")
        generator = torch.Generator().manual_seed(seed)
        for chosen in torch.split(torch.randperm(len(images), generator=generator), _BATCH_SIZE):
            yield augment.change_scenes(images[chosen], labels[chosen], generator)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return the first selection scenes."""
        return (scene_tensors("selection")[0][:_EXAMPLES],)

    def eval_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the selection scenes."""
        return scene_batches("selection")

    def test_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the test scenes."""
        return scene_batches("test")

    def calibration_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return training scenes as they are: calibration needs scenes like those the network will see."""
        return scene_batches("train", step=_CALIBRATION_STEP)

"""The default task: clothes in 28x28 grey images (Fashion-MNIST), with a trained network that edgeopt ships."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeopt.errors import DataError
from edgeopt.records.preprocessing import ImagePreprocessing
from edgeopt.task import Training
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.networks.narrow import narrow
from edgeopt.tasks.networks.resnet import SmallResNet
from edgeopt.tasks.networks.vision_transformer import SmallVisionTransformer
from edgeopt.tasks.ready import augment, fashion_mnist
from edgeopt.tasks.ready.teachers import load_teacher

_WEIGHTS_FILE = Path(__file__).parent / "data" / "fashion-resnet.safetensors"
_EPOCH_IMAGES = 12_000
"""Each epoch is a new random draw of this many training images."""
_BATCH_SIZE = 128


@cache
def load_tensors(split: fashion_mnist.Split) -> tuple[Tensor, Tensor]:
    """Return a split as float images ``(n, 1, 28, 28)`` in 0..1 and int64 labels ``(n,)``."""
    images, labels = fashion_mnist.load_split(split)
    return torch.from_numpy(images).float().div(255).unsqueeze(1), torch.from_numpy(labels)


def load_batches(split: fashion_mnist.Split, size: int = 500) -> list[tuple[Tensor, Tensor]]:
    """Return a split in order, in batches of ``size``."""
    images, labels = load_tensors(split)
    return list(zip(torch.split(images, size), torch.split(labels, size), strict=True))


class Fashion(Classification):
    """Fashion-MNIST with the packaged residual network; see ``fashion_mnist`` for the split.

    Args:
        model: Makes another network than the trained one.
    """

    training = Training(epochs=8, learning_rate=0.03, min_steps=0)
    own_name = "fashion"

    def __init__(self, model: Callable[[], nn.Module] | None = None) -> None:
        super().__init__(
            model or self.load_network,
            self.draw_epoch,
            eval=(),
            name=self.own_name,
            labels=fashion_mnist.CLASSES,
            training=self.training,
            preprocessing=ImagePreprocessing(height=28, width=28, color="gray"),
            licence="Fashion-MNIST: MIT",
        )

    @staticmethod
    def make_network(width_ratio: float = 1.0) -> nn.Module:
        """Return the residual network with initial weights; its channels times ``width_ratio``."""
        stem, *widths = narrow((32, 32, 64, 128), width_ratio)
        return SmallResNet(stem=stem, widths=widths)

    def load_network(self) -> nn.Module:
        """Build the residual network and load its packaged weights."""
        network = self.make_network()
        try:
            network.load_state_dict(load_file(_WEIGHTS_FILE))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DataError(f"{_WEIGHTS_FILE}: cannot be read ({error}). Reinstall edgeopt.") from error
        return network

    @staticmethod
    def draw_epoch(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``_EPOCH_IMAGES`` augmented training images; the same for the same seed."""
        images, labels = load_tensors("train")
        generator = torch.Generator().manual_seed(seed)
        order = torch.from_numpy(np.random.RandomState(seed % 2**32).permutation(len(labels))[:_EPOCH_IMAGES])
        for chosen in torch.split(order, _BATCH_SIZE):
            batch = augment.flip_horizontally(images[chosen], generator)
            yield augment.erase(augment.shift(batch, generator), generator), labels[chosen]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return the first eight selection images."""
        return (load_tensors("selection")[0][:8],)

    def eval_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the selection images."""
        return load_batches("selection")

    def test_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the official test images, or the packaged part of them."""
        return load_batches("test")

    def calibration_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return training images without augmentation: calibration needs images like those the network will see."""
        images, labels = load_tensors("train")
        return list(zip(torch.split(images[:1000], 100), torch.split(labels[:1000], 100), strict=True))


class FashionVisionTransformer(Fashion):
    """The same images with the vision transformer that ``tools/train_teacher.py`` has trained."""

    training = Training(epochs=8, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, min_steps=0)
    own_name = "fashion_vit"

    @staticmethod
    def make_network(width_ratio: float = 1.0) -> nn.Module:
        """Return the transformer with initial weights; its width times ``width_ratio``."""
        (width,) = narrow((128,), width_ratio)
        return SmallVisionTransformer(width=width)

    def load_network(self) -> nn.Module:
        """Build the transformer and load its weights."""
        return load_teacher(self.name, self.make_network())


def task() -> Fashion:
    """Return the default task."""
    return Fashion()

"""A ready task for a phone: the digit in a second of sound, from the waveform itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

from edgeopt.task import Training
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.networks.log_mel import LogMel
from edgeopt.tasks.networks.resnet import SmallResNet
from edgeopt.tasks.ready import fsdd
from edgeopt.tasks.ready.teachers import load_teacher

DIGITS_NAME = "spoken_digits"
_BATCH_SIZE = 32
_EVAL_BATCH_SIZE = 100
_EXAMPLES = 8
_MEAN, _STD = -5.0, 2.5
"""Of the log-mel values, about."""
_MAX_SHIFT = 1600
_MAX_NOISE = 0.01


class DigitNetwork(nn.Module):
    """Log-mel bands as a grey image, and a residual network on it.

    Args:
        stem: Channels of the first convolution.
        widths: Of each stage.
    """

    def __init__(self, stem: int = 16, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.front = LogMel(fsdd.RATE)
        self.network = SmallResNet(10, 1, stem, widths)

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms ``(batch, 8000)`` to logits ``(batch, 10)``."""
        logits: Tensor = self.network(((self.front(x) - _MEAN) / _STD).unsqueeze(1))
        return logits


@cache
def word_tensors(part: fsdd.SpeechPart, split: fsdd.SpeechSplit) -> tuple[Tensor, Tensor]:
    """Return a part as waveforms ``(n, 8000)`` and int64 labels ``(n,)``."""
    waves, labels = fsdd.load_words(part, split)
    return torch.from_numpy(waves), torch.from_numpy(labels)


class SpokenDigits(Classification):
    """Spoken digits with the network that ``tools/train_teacher.py`` has trained.

    Args:
        model: Makes another network than the trained one.
        split: Whether takes or speakers part training from selection and test.
    """

    split: fsdd.SpeechSplit = "take"

    def __init__(self, model: Callable[[], nn.Module] | None = None) -> None:
        super().__init__(
            model or self.load_network,
            self.draw_epoch,
            eval=(),
            name=DIGITS_NAME if self.split == "take" else f"{DIGITS_NAME}_by_speaker",
            labels=tuple(map(str, range(10))),
            input_names=("waveform",),
            training=Training(epochs=20, learning_rate=0.03),
            preprocessing="mono sound at 8 kHz, one second, in -1..1, shape (batch, 8000), float32",
        )

    @staticmethod
    def make_network(width_ratio: float = 1.0) -> nn.Module:
        """Return the network with initial weights; its channels times ``width_ratio``."""
        stem, *widths = (int(channels * width_ratio) for channels in (16, 32, 64, 128))
        return DigitNetwork(stem, tuple(widths))

    def load_network(self) -> nn.Module:
        """Build the network and load its weights."""
        return load_teacher(self.name, self.make_network())

    def draw_epoch(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training words in random order, earlier or later, louder or softer, with noise."""
        waves, labels = word_tensors("train", self.split)
        generator = torch.Generator().manual_seed(seed)
        for chosen in torch.split(torch.randperm(len(waves), generator=generator), _BATCH_SIZE):
            count = len(chosen)
            shifts = torch.randint(-_MAX_SHIFT, _MAX_SHIFT + 1, (count, 1), generator=generator)
            places = (torch.arange(fsdd.RATE) + shifts) % fsdd.RATE
            loudness = 0.5 + torch.rand(count, 1, generator=generator)
            noise = torch.randn(count, fsdd.RATE, generator=generator)
            level = _MAX_NOISE * torch.rand(count, 1, generator=generator)
            yield waves[chosen].gather(1, places) * loudness + noise * level, labels[chosen]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return the first selection words."""
        return (word_tensors("selection", self.split)[0][:_EXAMPLES],)

    def eval_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the selection words."""
        return self._in_batches("selection")

    def test_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the test words."""
        return self._in_batches("test")

    def calibration_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return training words as they are."""
        return self._in_batches("train")

    def _in_batches(self, part: fsdd.SpeechPart) -> list[tuple[Tensor, Tensor]]:
        waves, labels = (torch.split(values, _EVAL_BATCH_SIZE) for values in word_tensors(part, self.split))
        return list(zip(waves, labels, strict=True))


class SpokenDigitsBySpeaker(SpokenDigits):
    """The same words; the speakers who select and test are not among those who train."""

    split = "speaker"

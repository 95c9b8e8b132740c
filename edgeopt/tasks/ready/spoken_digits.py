"""A ready task for a phone: the digit in a second of sound, from the waveform itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

from edgeopt.records.preprocessing import SoundPreprocessing
from edgeopt.task import Training
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.networks.log_mel import ConvolutionLogMel, LogMel
from edgeopt.tasks.networks.narrow import narrow
from edgeopt.tasks.networks.resnet import SmallResNet
from edgeopt.tasks.ready import fsdd
from edgeopt.tasks.ready.teachers import load_teacher

DIGITS_NAME = "spoken_digits"
_BATCH_SIZE = 32
_EVAL_BATCH_SIZE = 100
_EXAMPLES = 8
BANDS = 40
BAND_MEAN, BAND_STD = -5.0, 2.5
"""Of the log-mel values, about."""
_MAX_SHIFT = 1600
_MAX_NOISE = 0.01


class DigitNetwork(nn.Module):
    """Log-mel bands as a grey image, and a residual network on it.

    Args:
        stem: Channels of the first convolution.
        widths: Of each stage.
        front: Maps waveforms to log-mel bands; by default by ``torch.stft``.
    """

    def __init__(self, stem: int = 16, widths: tuple[int, ...] = (32, 64, 128), front: nn.Module | None = None) -> None:
        super().__init__()
        self.front = front or LogMel(fsdd.RATE)
        self.network = SmallResNet(10, 1, stem, widths)

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms ``(batch, 8000)`` to logits ``(batch, 10)``."""
        logits: Tensor = self.network(_normalized(self.front(x)).unsqueeze(1))
        return logits


class RecurrentDigitNetwork(nn.Module):
    """Log-mel bands by a convolution, layers of gated recurrent units, and the mean of their outputs over time.

    Args:
        width: Of a recurrent layer.
        layers: Number of them.
    """

    def __init__(self, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.front = ConvolutionLogMel(fsdd.RATE)
        self.recurrent = nn.GRU(BANDS, width, layers, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms ``(batch, 8000)`` to logits ``(batch, 10)``."""
        outputs, _ = self.recurrent(_normalized(self.front(x)).transpose(1, 2))
        logits: Tensor = self.head(outputs.mean(1))
        return logits


def _normalized(bands: Tensor) -> Tensor:
    return (bands - BAND_MEAN) / BAND_STD


@cache
def word_tensors(part: fsdd.SpeechPart, split: fsdd.SpeechSplit) -> tuple[Tensor, Tensor]:
    """Return a part as waveforms ``(n, 8000)`` and int64 labels ``(n,)``."""
    waves, labels = fsdd.load_words(part, split)
    return torch.from_numpy(waves), torch.from_numpy(labels)


class SpokenDigits(Classification):
    """Spoken digits with the network that ``tools/train_teacher.py`` has trained.

    Args:
        model: Makes another network than the trained one.
    """

    split: fsdd.SpeechSplit = "take"
    """Whether takes or speakers part training from selection and test."""
    suffix = ""
    """Of the task's name."""
    training = Training(epochs=20, learning_rate=0.03)

    def __init__(self, model: Callable[[], nn.Module] | None = None) -> None:
        super().__init__(
            model or self.load_network,
            self.draw_epoch,
            eval=(),
            name=f"{DIGITS_NAME}{self.suffix}",
            labels=tuple(map(str, range(10))),
            input_names=("waveform",),
            training=self.training,
            preprocessing=SoundPreprocessing(sample_rate=fsdd.RATE, samples=fsdd.RATE, align="middle"),
            licence="Free Spoken Digit Dataset: CC BY-SA 4.0",
        )

    @classmethod
    def make_network(cls, width_ratio: float = 1.0) -> nn.Module:
        """Return the network with initial weights; its channels times ``width_ratio``."""
        stem, *widths = narrow((16, 32, 64, 128), width_ratio)
        return DigitNetwork(stem, tuple(widths), cls.make_front())

    @staticmethod
    def make_front() -> nn.Module:
        """Return what maps waveforms to log-mel bands."""
        return LogMel(fsdd.RATE)

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
        return self.batches_of("selection")

    def test_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the test words."""
        return self.batches_of("test")

    def calibration_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return training words as they are, in random order: only the first calibrate, and files come word by word."""
        waves, labels = word_tensors("train", self.split)
        order = torch.randperm(len(waves), generator=torch.Generator().manual_seed(0))
        return _in_batches(waves[order], labels[order])

    def batches_of(self, part: fsdd.SpeechPart) -> list[tuple[Tensor, Tensor]]:
        """Return the words of a part as they are."""
        return _in_batches(*word_tensors(part, self.split))


def _in_batches(waves: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(waves, _EVAL_BATCH_SIZE), torch.split(labels, _EVAL_BATCH_SIZE), strict=True))


class SpokenDigitsBySpeaker(SpokenDigits):
    """The same words; the speakers who select and test are not among those who train."""

    split = "speaker"
    suffix = "_by_speaker"


class SpokenDigitsByConvolution(SpokenDigits):
    """The same words and network; the front end is a convolution instead of ``torch.stft``."""

    suffix = "_convolution"

    @staticmethod
    def make_front() -> nn.Module:
        """Return the front end."""
        return ConvolutionLogMel(fsdd.RATE)


class SpokenDigitsRecurrent(SpokenDigits):
    """The same words with a recurrent network."""

    suffix = "_recurrent"
    training = Training(epochs=20, optimizer="adamw", learning_rate=2e-3, weight_decay=0.01)

    @classmethod
    def make_network(cls, width_ratio: float = 1.0) -> nn.Module:
        """Return the network with initial weights; its width times ``width_ratio``."""
        return RecurrentDigitNetwork(*narrow((128,), width_ratio))

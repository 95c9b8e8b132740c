"""A ready task for a phone that listens all the time: a tenth of a second at once, and a state from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from edgeopt.records.preprocessing import SoundPreprocessing
from edgeopt.task import Training
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.networks.log_mel import ConvolutionLogMel
from edgeopt.tasks.networks.narrow import narrow
from edgeopt.tasks.ready import fsdd
from edgeopt.tasks.ready.spoken_digits import BAND_MEAN, BAND_STD, BANDS, SpokenDigits
from edgeopt.tasks.ready.teachers import load_teacher

STREAMING_NAME = "spoken_digits_streaming"
_CHUNK = 800
_CHUNKS = fsdd.RATE // _CHUNK
_FIRST_ANSWER = 7
"""The chunk from which on a word, which is in the middle of its second, has mostly been heard."""
_NO_LABEL = -1
_WIDTH = 128
_INNER = 96


class StreamingDigitNetwork(nn.Module):
    """Log-mel bands of a chunk, a layer before gated recurrent units, and a layer after them.

    Args:
        inner: Of the layers before and after.
        width: Of the state.
    """

    def __init__(self, inner: int = _INNER, width: int = _WIDTH) -> None:
        super().__init__()
        self.front = ConvolutionLogMel(fsdd.RATE, center=False)
        self.overlap = self.front.size - self.front.hop
        self.before = nn.Linear(BANDS, inner)
        self.recurrent = nn.GRU(inner, width, batch_first=True)
        self.after = nn.Linear(width, inner)
        self.head = nn.Linear(inner, 10)

    def first_states(self, count: int) -> dict[str, Tensor]:
        """Return the states before the first chunk of ``count`` recordings."""
        return {
            "past": torch.zeros(count, self.overlap),
            "state": torch.zeros(1, count, self.recurrent.hidden_size),
        }

    def forward(self, chunk: Tensor, past: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Listen to a chunk.

        Args:
            chunk: Samples ``(batch, 800)``.
            past: The last samples of the chunk before, ``(batch, 176)``.
            state: Of the recurrent units, ``(1, batch, width)``.

        Returns:
            Logits ``(batch, 10)`` of the word so far, and the next ``past`` and ``state``.
        """
        sound = torch.cat([past, chunk], 1)
        bands = (self.front(sound) - BAND_MEAN) / BAND_STD
        outputs, next_state = self.recurrent(torch.relu(self.before(bands.transpose(1, 2))), state)
        logits = self.head(torch.relu(self.after(outputs[:, -1])))
        return logits, sound[:, -self.overlap :], next_state


class ChunkedWords(nn.Module):
    """Runs a streaming network over whole words, to train it.

    Args:
        network: A ``StreamingDigitNetwork``.
    """

    def __init__(self, network: StreamingDigitNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms ``(batch, 8000)`` to the mean logits ``(batch, 10)`` of the last chunks."""
        past, state = self.network.first_states(len(x)).values()
        heard = []
        for chunk in torch.split(x, _CHUNK, 1):
            logits, past, state = self.network(chunk, past, state)
            heard.append(logits)
        return torch.stack(heard[_FIRST_ANSWER:]).mean(0)


class SpokenDigitsInChunks(SpokenDigits):
    """The words as whole waveforms; its network is trained for ``SpokenDigitsStreaming``."""

    suffix = "_streaming"

    @classmethod
    def make_network(cls, width_ratio: float = 1.0) -> nn.Module:
        """Return the network with initial weights; its widths times ``width_ratio``."""
        return ChunkedWords(StreamingDigitNetwork(*narrow((_INNER, _WIDTH), width_ratio)))


class SpokenDigitsStreaming(Classification):
    """Spoken digits in chunks of a tenth of a second; the answer after the last chunk of each word counts.

    Args:
        model: Makes another network than the trained one.
    """

    def __init__(self, model: Callable[[], nn.Module] | None = None) -> None:
        self.words = SpokenDigits()
        super().__init__(
            model or self.load_network,
            self.draw_epoch,
            eval=(),
            name=STREAMING_NAME,
            labels=self.words.labels,
            output_names=("logits", "next_past", "next_state"),
            states={"past": "next_past", "state": "next_state"},
            score_output="logits",
            ignore_label=_NO_LABEL,
            training=Training(epochs=10, optimizer="adamw", learning_rate=2e-3, weight_decay=0.01),
            preprocessing={"chunk": SoundPreprocessing(sample_rate=fsdd.RATE, samples=_CHUNK)},
            licence=self.words.licence,
        )

    def load_network(self) -> nn.Module:
        """Build the network and load its weights."""
        words = load_teacher(self.name, SpokenDigitsInChunks.make_network())
        assert isinstance(words, ChunkedWords)
        return words.network

    def draw_epoch(self, seed: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield the training words in chunks; their labels count as soon as a word has been heard."""
        for waves, labels in self.words.draw_epoch(seed):
            yield from self.chunks(waves, labels, _FIRST_ANSWER)

    def example_inputs(self) -> dict[str, Tensor]:
        """Return the middle of the first selection words, with states before it."""
        (waves,) = self.words.example_inputs()
        return {"chunk": waves[:, 3600 : 3600 + _CHUNK], **self.first_states(len(waves))}

    def eval_batches(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Return the selection words."""
        return self._last_answers("selection")

    def test_batches(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Return the test words."""
        return self._last_answers("test")

    def calibration_batches(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Return training words as they are."""
        for waves, labels in self.words.calibration_batches():
            yield from self.chunks(waves, labels, _FIRST_ANSWER)

    def first_states(self, count: int) -> dict[str, Tensor]:
        """Return the states before the first chunk."""
        network = self.build_model()
        assert isinstance(network, StreamingDigitNetwork)
        return network.first_states(count)

    def chunks(self, waves: Tensor, labels: Tensor, first_answer: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield the chunks of some words; only the first has states, and labels count from ``first_answer`` on."""
        for number, chunk in enumerate(torch.split(waves, _CHUNK, 1)):
            states = self.first_states(len(waves)) if number == 0 else {}
            counted = labels if number >= first_answer else torch.full_like(labels, _NO_LABEL)
            yield {"chunk": chunk, **states}, counted

    def _last_answers(self, part: fsdd.SpeechPart) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for waves, labels in self.words.batches_of(part):
            yield from self.chunks(waves, labels, _CHUNKS - 1)

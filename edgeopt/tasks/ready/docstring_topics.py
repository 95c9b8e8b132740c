"""A ready task with words: what a paragraph about Python's standard library is about, and a small encoder like BERT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.task import Training
from edgeopt.tasks.classification import Classification
from edgeopt.tasks.networks.narrow import narrow
from edgeopt.tasks.networks.text_encoder import TextEncoder
from edgeopt.tasks.ready import docstrings
from edgeopt.tasks.ready.teachers import load_teacher

TOPICS_NAME = "docstring_topics"
_BATCH_SIZE = 32
_EVAL_BATCH_SIZE = 64
_SORTED_BATCHES = 16
"""The texts of this many batches are sorted by length, so that those of a batch need little padding."""
_EXAMPLES = 8
_CALIBRATION_STEP = 10
_HIDDEN_RATIO = 0.15
"""Of the words in training; they are hidden at random."""

_Batch = tuple[dict[str, Tensor], Tensor]


@cache
def read_texts(part: docstrings.TextPart) -> list[docstrings.Text]:
    """Return a part, the shortest texts first."""
    return sorted(docstrings.load_texts(part), key=lambda text: len(text.words))


def pad_texts(texts: Sequence[docstrings.Text]) -> _Batch:
    """Return ``input_ids`` and ``attention_mask`` ``(batch, words of the longest)``, int64, and labels ``(batch,)``."""
    longest = max(len(text.words) for text in texts)
    ids = np.full((len(texts), longest), docstrings.PADDING, np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text.words)] = text.words
    mask = ids != docstrings.PADDING
    labels = torch.tensor([text.label for text in texts])
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}, labels


class DocstringTopics(Classification):
    """Topics of texts with the encoder that ``tools/train_teacher.py`` has trained; see ``docstrings`` for the parts.

    Args:
        model: Makes another network than the trained one.
    """

    def __init__(self, model: Callable[[], nn.Module] | None = None) -> None:
        length = ("length", 1, docstrings.MAX_WORDS)
        super().__init__(
            model or self.load_network,
            self.draw_epoch,
            eval=(),
            name=TOPICS_NAME,
            labels=tuple(docstrings.TOPICS),
            output_names=("logits",),
            dynamic_axes={"input_ids": {1: length}, "attention_mask": {1: length}},
            training=Training(epochs=12, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01),
            preprocessing=(
                "words, numbers and signs in lower case (readLine and read_line are two words each), at most "
                f"{docstrings.MAX_WORDS}; the id of each is 2 plus the CRC-32 of its UTF-8 bytes modulo "
                f"{docstrings.TABLE_ROWS - 2}, padding is {docstrings.PADDING} with an attention_mask of 0; both int64"
            ),
        )

    @staticmethod
    def make_network(width_ratio: float = 1.0) -> nn.Module:
        """Return the encoder with initial weights; its width times ``width_ratio``."""
        (width,) = narrow((128,), width_ratio)
        return TextEncoder(len(docstrings.TOPICS), docstrings.TABLE_ROWS, docstrings.MAX_WORDS, width=width)

    @classmethod
    def load_network(cls) -> nn.Module:
        """Build the encoder and load its weights."""
        return load_teacher(TOPICS_NAME, cls.make_network())

    @staticmethod
    def draw_epoch(seed: int) -> Iterator[_Batch]:
        """Yield the training texts in random order, with some words hidden; the same for the same seed."""
        texts = read_texts("train")
        generator = torch.Generator().manual_seed(seed)
        batches: list[list[int]] = []
        for pool in torch.split(torch.randperm(len(texts), generator=generator), _SORTED_BATCHES * _BATCH_SIZE):
            rows = sorted(pool.tolist())  # as texts are sorted by length
            batches += [rows[start : start + _BATCH_SIZE] for start in range(0, len(rows), _BATCH_SIZE)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            inputs, labels = pad_texts([texts[row] for row in batches[index]])
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            hidden = (torch.rand(ids.shape, generator=generator) < _HIDDEN_RATIO) & (mask > 0)
            yield {"input_ids": ids.masked_fill(hidden, docstrings.HIDDEN), "attention_mask": mask}, labels

    def example_inputs(self) -> dict[str, Tensor]:
        """Return the longest selection texts: at their length the file is measured."""
        return pad_texts(read_texts("selection")[-_EXAMPLES:])[0]

    def eval_batches(self) -> Iterator[_Batch]:
        """Yield the selection texts."""
        return _in_batches(read_texts("selection"))

    def test_batches(self) -> Iterator[_Batch]:
        """Yield the test texts."""
        return _in_batches(read_texts("test"))

    def calibration_batches(self) -> Iterator[_Batch]:
        """Yield training texts as they are, in random order: only the first calibrate, and texts come by length."""
        texts = read_texts("train")[::_CALIBRATION_STEP]
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
        return _in_batches([texts[index] for index in order])


def _in_batches(texts: Sequence[docstrings.Text]) -> Iterator[_Batch]:
    for start in range(0, len(texts), _EVAL_BATCH_SIZE):
        yield pad_texts(texts[start : start + _EVAL_BATCH_SIZE])

"""The default task with other samples that select, for ``honesty.py``: ``EDGEOPT_HONESTY_SEED`` says which."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

from edgeopt.errors import DataError
from edgeopt.tasks.ready import fashion_mnist
from edgeopt.tasks.ready.fashion import Fashion, load_tensors

SEED_VARIABLE = "EDGEOPT_HONESTY_SEED"
SELECTION_IMAGES = 2000
_BATCH_SIZE = 500
_SEED_STEP = 7_654_321


def read_seed() -> int:
    """Return the number of the split."""
    return int(os.environ[SEED_VARIABLE])


@cache
def split_unseen(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the images that select and those that are held back, of all that the trained network has not seen.

    Raises:
        DataError: the full data set is missing; the packaged part is too small to hold enough back.
    """
    if fashion_mnist.full_set_folder() is None:
        raise DataError("this benchmark needs all of Fashion-MNIST: set EDGEOPT_DATA (tools/fetch_data.py fetches it).")
    parts = [load_tensors(part) for part in ("selection", "test")]
    images, labels = (torch.cat(values) for values in zip(*parts, strict=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen, held_back = order[:SELECTION_IMAGES], order[SELECTION_IMAGES:]
    return (images[chosen], labels[chosen]), (images[held_back], labels[held_back])


def _in_batches(part: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(torch.split(values, _BATCH_SIZE) for values in part), strict=True))


class SplitFashion(Fashion):
    """The default task with its own split, and its own order of training images."""

    own_name = "fashion_split"

    def train_batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch of training images, in another order for each split."""
        return self.draw_epoch((seed + _SEED_STEP * read_seed()) % 2**31)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return the first eight images that select."""
        return (split_unseen(read_seed())[0][0][:8],)

    def eval_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the images that select."""
        return _in_batches(split_unseen(read_seed())[0])

    def test_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the images that are held back."""
        return _in_batches(split_unseen(read_seed())[1])


def task() -> SplitFashion:
    """Return the task of the split that the environment names."""
    return SplitFashion()

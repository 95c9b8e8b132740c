"""The global random generators, swapped so that the user's loader and the training do not disturb each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

A = TypeVar("A")


class RandomStates:
    """The states of torch's, numpy's and Python's global generators after seeding with ``seed``."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator()
        generator.manual_seed(seed)
        self.torch = generator.get_state()
        self.numpy = np.random.RandomState(seed % 2**32).get_state()
        self.python = random.Random(seed).getstate()  # noqa: S311 - data augmentation, not secrets


def seed_generators(seed: int) -> None:
    """Seed the global generators, which a network and a training step may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_own_generators(loader: Any, seed: int) -> None:
    """Seed the generators that a ``DataLoader`` or its samplers bring along."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    for owner in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


@contextmanager
def use_random_states(states: RandomStates) -> Iterator[None]:
    """Run a block with the global generators in ``states``, then save their new states there and restore the old."""
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    torch.set_rng_state(states.torch)
    np.random.set_state(states.numpy)
    random.setstate(states.python)
    try:
        yield
    finally:
        states.torch, states.numpy, states.python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def draw_in_order(seed: int, make: Callable[[], Iterable[A]]) -> Iterator[A]:
    """Yield items, the same for the same seed, whatever else draws from the global generators meanwhile.

    Args:
        seed: Of the global generators, which a loader draws from in states of its own; they are swapped in for each
            item.
        make: Returns the items.
    """
    states = RandomStates(seed)
    with use_random_states(states):
        items = iter(make())
    while True:
        with use_random_states(states):
            found = list(islice(items, 1))
        if not found:
            return
        yield found[0]

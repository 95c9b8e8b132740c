"""Tasks whose batches come from other processes: loaders with workers, each kind of start, and a pool of its own."""

import multiprocessing

import numpy as np
import torch
from tiny_task import images, trained
from torch.utils.data import DataLoader, TensorDataset

import edgeopt


def loader(count, seed, **options):
    return DataLoader(TensorDataset(*images(count, seed)), 32, **options)


def a_task(**options):
    """Return a task with shuffled training batches."""
    return edgeopt.classification(
        trained,
        loader(128, 1, shuffle=True, **options),
        loader(128, 1000, **options),
        training=edgeopt.Training(epochs=1, learning_rate=0.05),
    )


def plain():
    return a_task()


def forked():
    return a_task(num_workers=2)


def persistent():
    return a_task(num_workers=2, persistent_workers=True)


def spawned():
    return a_task(num_workers=1, multiprocessing_context="spawn")


def doubled(values):
    return values * 2


class PooledLoader:
    """Computes each batch in a pool of forked processes that lives as long as the task."""

    def __init__(self, batches):
        self.batches = batches
        self.pool = multiprocessing.get_context("fork").Pool(2)

    def __iter__(self):
        for x, labels in self.batches:
            (half,) = self.pool.map(doubled, [x.numpy() / 2])
            yield torch.from_numpy(np.asarray(half)), labels


def pooled():
    return edgeopt.classification(
        trained,
        PooledLoader(list(loader(128, 1))),
        PooledLoader(list(loader(128, 1000))),
        training=edgeopt.Training(epochs=1, learning_rate=0.05),
    )

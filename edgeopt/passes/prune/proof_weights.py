"""``ProofWeights``: the tensors of both networks of a proof, in float64, each made when it is read.

A network of a billion parameters takes 4 GB; two copies in float64 would take 12 more. So the graphs keep their
tensors as they are, and the interpreters get one at a time.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeopt.passes.network import Network
from edgeopt.passes.prune.float64 import to_float64
from edgeopt.passes.prune.interpret import tensor_names
from edgeopt.passes.prune.labels import Integers, Slot
from edgeopt.passes.prune.resize import take_indices


class ProofWeights:
    """The tensors of a network, with lost channels at zero, and those of the same network after a cut.

    Tensors with a single value (newly initialized norms and heads) cannot show a swapped index, so they get random
    values, the same in both networks.

    Args:
        original: The network before the cut.
        pruned: The network after it, not trained since.
        kept: The kept indices of each (tensor, dimension) of the original.
        seed: Seed of the random values.
    """

    def __init__(self, original: Network, pruned: Network, kept: Mapping[Slot, Integers], seed: int) -> None:
        self.original = original
        self.pruned = pruned
        self.kept = kept
        self.seed = seed
        self.names = tensor_names(original.eval_module)

    def of_original(self, target: str) -> Any:
        """Return what a graph of the original reads under a name."""
        value = operator.attrgetter(target)(self.original.eval_module)
        if not isinstance(value, Tensor):
            return to_float64(value)
        tensor = self._filled(target, value)
        for dim in range(tensor.ndim):
            if (self.names[target], dim) in self.kept:
                lost = np.setdiff1d(np.arange(tensor.shape[dim]), self.kept[self.names[target], dim])
                tensor.index_fill_(dim, torch.from_numpy(lost), 0.0)
        return tensor

    def of_pruned(self, target: str) -> Any:
        """Return what a graph of the pruned network reads under a name."""
        value = operator.attrgetter(target)(self.pruned.eval_module)
        before = operator.attrgetter(target)(self.original.eval_module)
        if not isinstance(value, Tensor):
            return to_float64(value)
        if not _has_single_value(before):
            return to_float64(value)
        slots = [(self.names[target], dim) for dim in range(before.ndim)]
        kept = {dim: self.kept[slot] for dim, slot in enumerate(slots) if slot in self.kept}
        return take_indices(self._filled(target, before), kept)

    def _filled(self, target: str, value: Tensor) -> Tensor:
        """Return a tensor of the original in float64, with random values if it has a single one.

        Zeros (biases, running means) get small values: large ones would leave channels at zero after a ReLU, and hide
        errors.
        """
        tensor: Tensor = to_float64(value)
        if _has_single_value(value):
            random = torch.Generator().manual_seed(self.seed + zlib.crc32(self.names[target].encode()))
            spread = 1.0 if bool(tensor.any()) else 0.1
            tensor += spread * (torch.rand(tensor.shape, generator=random, dtype=tensor.dtype) + 0.1)
        return tensor


def _has_single_value(value: Tensor) -> bool:
    return value.is_floating_point() and value.numel() > 1 and bool((value == value.reshape(-1)[0]).all())

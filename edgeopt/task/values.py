"""Inputs, outputs and targets as tensors and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    """Return model inputs as a tuple: a single tensor becomes a tuple of one."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def as_outputs(arrays: Sequence[NDArray[Any]]) -> Any:
    """Return arrays as ``score`` expects them: a single array as it is, several as a tuple."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def flat_outputs(outputs: Any) -> tuple[Tensor, ...]:
    """Return a model's outputs as a flat tuple of tensors, in the exporter's order."""
    return tuple(torch.utils._pytree.tree_leaves(outputs))


def to_numpy(value: Any) -> Any:
    """Return tensors as arrays, through tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        return {key: to_numpy(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(to_numpy(item) for item in value)
    return np.asarray(value)

"""Inputs, outputs and targets as tensors and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SHOWN_ITEMS = 4


def flat_outputs(outputs: Any) -> tuple[Tensor, ...]:
    """Return the outputs of a traced network as a flat tuple of tensors."""
    return tuple(torch.utils._pytree.tree_leaves(outputs))


def to_numpy(value: Any) -> Any:
    """Return tensors as arrays, in the same nesting; numbers become arrays too, strings and None stay."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    if isinstance(value, Mapping):
        return {key: to_numpy(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(to_numpy, value))
    if isinstance(value, tuple | list) and value and all(isinstance(item, int | float | np.number) for item in value):
        return np.asarray(value)  # what others would write as a tensor
    if isinstance(value, tuple | list):
        return type(value)(map(to_numpy, value))
    return np.asarray(value) if isinstance(value, bool | int | float | complex | np.generic) else value


def describe_value(value: Any) -> str:
    """Describe a value by types and shapes, for a message: ``(tensor 8x3x12x12 float32, list of 8)``."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        return f"{kind} {'x'.join(map(str, value.shape)) or '0-d'} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        shown = [f"{key}: {describe_value(item)}" for key, item in list(value.items())[:_SHOWN_ITEMS]]
        return f"{{{', '.join(shown)}{', ...' if len(value) > _SHOWN_ITEMS else ''}}}"
    if isinstance(value, tuple | list) and any(isinstance(item, Tensor | np.ndarray | Mapping) for item in value):
        shown = [describe_value(item) for item in value[:_SHOWN_ITEMS]]
        return f"({', '.join(shown)}{', ...' if len(value) > _SHOWN_ITEMS else ''})"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__

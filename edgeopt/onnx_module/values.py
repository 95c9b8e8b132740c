"""What flows through a converted graph: tensors, and numbers that are known without running it.

Numbers are numpy arrays: small constants, and what is computed from shapes. While ``torch.export`` records the module,
a dynamic size is a ``torch.SymInt``; arrays with such sizes have dtype ``object``. So a chain of Shape, Gather,
Concat and Reshape is computed by Python on sizes, and never becomes a tensor.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers: TypeAlias = NDArray[Any]
Value: TypeAlias = Tensor | Numbers

MAX_NUMBERS = 64
"""Largest constant that operators get as numbers where they take both; shapes, axes and limits have fewer."""


def is_plain(numbers: Numbers) -> bool:
    """Tell whether all numbers are known, none of them a dynamic size."""
    return all(not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) for value in numbers.flat)


def as_tensor(value: Value, device: torch.device | None = None) -> Tensor:
    """Return a value as a tensor."""
    if isinstance(value, Tensor):
        return value
    if value.dtype != object:
        return torch.from_numpy(np.array(value)).to(device)
    if is_plain(value):
        return torch.tensor(value.tolist(), device=device)
    dtype = torch.float32 if any(isinstance(one, float | torch.SymFloat) for one in value.flat) else torch.int64
    scalars = [torch.scalar_tensor(one, dtype=dtype, device=device) for one in value.flat]
    return torch.stack(scalars).reshape(value.shape)


def as_numbers(tensor: Tensor) -> Numbers:
    """Return a constant as numbers."""
    plain = tensor.detach().cpu()
    array: Numbers = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def as_list(value: Numbers) -> list[Any]:
    """Return numbers as a flat list of Python numbers and dynamic sizes."""
    values: list[Any] = value.reshape(-1).tolist()
    return values

"""A training's state in one safetensors file, replaced whole after each epoch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_checkpoint(path: Path, groups: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
    """Write groups of tensors (``network``, ``optimizer``, ``best``) and JSON facts; a kill leaves the old file."""
    tensors = {
        f"{group}/{name}": value.detach().contiguous().clone()
        for group, members in groups.items()
        for name, value in members.items()
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Read a checkpoint, or return None where there is none that can be read: the training then starts anew."""
    if not path.exists():
        return None
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as stored:
            facts = json.loads(stored.metadata()["facts"])
            for key in stored.keys():  # noqa: SIM118 - not a mapping
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = stored.get_tensor(key)
    except (SafetensorError, KeyError, ValueError):
        return None
    return groups, facts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as ``index/name`` tensors."""
    return {
        f"{index}/{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

"""Made-up inputs whose kinds fit a graph: ids within the table that they index, masks of ones, sizes by convention.

They are good for timing a file, not for scoring it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.errors import InputError
from edgeopt.tasks.onnx_data.ids import find_id_limits
from edgeopt.tasks.onnx_data.samples import InputArrays
from edgeopt.tasks.onnx_data.specs import InputAxes, InputSpec, open_dimensions

MADE_UP = "made-up inputs"
"""How the note on made-up inputs begins."""
_MASK = re.compile(r"mask", re.IGNORECASE)
_RATE = re.compile(r"^(sr|rate|sample_?rate|sampling_?rate)$", re.IGNORECASE)
_LENGTH = re.compile(r"len", re.IGNORECASE)
_PAST = re.compile(r"past|cache", re.IGNORECASE)
_SIDE = re.compile(r"height|width|^[hw]$", re.IGNORECASE)
_CHANNEL = re.compile(r"channel|^c$", re.IGNORECASE)
_SIDE_SIZE = 224
_CHANNEL_SIZE = 3
_SEQUENCE_SIZE = 128
_PAST_SIZE = 16
_SOUND_SIZE = 16_000
"""A second of speech."""
_SAMPLE_RATE = 16_000
_MAX_VALUES = 2**28
"""Of one input: a graph that asks for more is not run."""


class MadeUp(NamedTuple):
    """One batch of made-up inputs."""

    arrays: InputArrays
    note: str
    """What was made up besides random numbers; empty if nothing was."""


def make_up_inputs(
    graph: onnx.GraphProto,
    inputs: Sequence[InputSpec],
    axes: InputAxes,
    batch_size: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> MadeUp:
    """Return one batch of made-up inputs.

    Args:
        graph: Says which inputs are ids.
        inputs: Of the graph.
        axes: The batch of each.
        batch_size: Samples.
        shapes: Of inputs, as the user said.

    Raises:
        InputError: an input has no declared shape, does not fit ``shapes``, or is too large.
    """
    sizes = _choose_sizes(inputs, axes, shapes)
    limits = find_id_limits(graph)
    random = np.random.default_rng(0)
    arrays: InputArrays = {}
    said: list[str] = []
    for spec in inputs:
        shape = _shape_of(spec, axes[spec.name], batch_size, sizes)
        longest = max((sizes[one.name] for each in inputs for one in open_dimensions(each, axes[each.name])), default=1)
        arrays[spec.name], kind = _values(spec, shape, limits.get(spec.name), longest, random)
        made = [one.name for one in open_dimensions(spec, axes[spec.name]) if spec.name not in shapes]
        words = [kind] if kind else []
        words += [f"shape {'x'.join(map(str, shape))}"] if made else []
        said += [f"'{spec.name}' {', '.join(words)}"] if words else []
    return MadeUp(arrays, f"{MADE_UP}: {'; '.join(said)}" if said else "")


def _choose_sizes(
    inputs: Sequence[InputSpec], axes: InputAxes, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Return the size of each dynamic dimension: the user's, or one by convention."""
    sizes: dict[str, int] = {}
    for spec in inputs:
        if spec.dimensions is None:
            raise InputError(f"input '{spec.name}' has no declared shape: pass --inputs FILE.npz.")
        asked = shapes.get(spec.name)
        if asked is not None and len(asked) != len(spec.dimensions):
            raise InputError(f"--shape gives '{spec.name}' {len(asked)} dimensions, but the model takes {spec.shown}.")
        for one in open_dimensions(spec, axes[spec.name]):
            if asked is not None:
                sizes[one.name] = asked[one.axis]
    for spec in inputs:
        for one in open_dimensions(spec, axes[spec.name]):
            if "+" not in one.name:
                sizes.setdefault(one.name, _usual_size(spec, one.name, one.axis))
    for spec in inputs:
        for one in open_dimensions(spec, axes[spec.name]):
            parts = [part.strip() for part in one.name.split("+")]
            known = [int(part) if part.isdecimal() else sizes.get(part, _SEQUENCE_SIZE) for part in parts]
            sizes.setdefault(one.name, sum(known))
    return sizes


def _usual_size(spec: InputSpec, name: str, axis: int) -> int:
    rank = len(spec.dimensions or ())
    if _PAST.search(name):
        return _PAST_SIZE
    if _CHANNEL.search(name) or (rank == 4 and axis == 1 and (spec.dimensions or [])[2:] == [None, None]):
        return _CHANNEL_SIZE
    if _SIDE.search(name) or (rank == 4 and spec.dtype.kind in "fu"):
        return _SIDE_SIZE
    has_one_row = all(size in (None, 1) for size in (spec.dimensions or [])[:-1])
    is_sound = spec.dtype.kind == "f" and axis == rank - 1 and rank in (2, 3) and has_one_row
    return _SOUND_SIZE if is_sound else _SEQUENCE_SIZE


def _shape_of(spec: InputSpec, batch_axis: int | None, batch_size: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    opened = {one.axis: sizes[one.name] for one in open_dimensions(spec, batch_axis)}
    shape = [
        size if size is not None else batch_size if axis == batch_axis else opened[axis]
        for axis, size in enumerate(spec.dimensions or ())
    ]
    if math.prod(shape) > _MAX_VALUES:
        raise InputError(
            f"input '{spec.name}' takes {spec.shown}: with shape {tuple(shape)} that is {math.prod(shape):,} values, "
            "more than edgeopt makes up. Pass --inputs FILE.npz."
        )
    return tuple(shape)


def _values(
    spec: InputSpec, shape: tuple[int, ...], limit: int | None, longest: int, random: np.random.Generator
) -> tuple[NDArray[Any], str]:
    """Return values, and words on them if they are more than random numbers."""
    if spec.dtype.kind == "f":
        if _MASK.search(spec.name):
            return np.ones(shape, spec.dtype), "ones"
        return np.asarray(random.standard_normal(shape)).astype(spec.dtype), ""
    if _RATE.search(spec.name):
        return np.full(shape, _SAMPLE_RATE, np.int64).astype(spec.dtype), f"{_SAMPLE_RATE}"
    if spec.dtype.kind == "b" or _MASK.search(spec.name):
        return np.ones(shape, spec.dtype), "ones"
    if limit is not None:
        high = min(limit, np.iinfo(spec.dtype).max)
        return random.integers(0, max(1, high), shape).astype(spec.dtype), f"ids below {limit:,}"
    if _LENGTH.search(spec.name):
        return np.full(shape, longest, np.int64).astype(spec.dtype), f"{longest}"
    if spec.dtype.itemsize == 1:
        info = np.iinfo(spec.dtype)
        return random.integers(info.min, info.max, shape, dtype=spec.dtype, endpoint=True), ""
    return random.integers(0, 2, shape).astype(spec.dtype), "0 or 1"

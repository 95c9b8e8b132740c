"""What is stated of a model's inputs, compared with samples: an app that prepares them otherwise is silently wrong.

In: preprocessing as a task states it, and golden inputs. Out: what an app can be told, and warnings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeopt.bundle.golden import Array
from edgeopt.bundle.raw_inputs import RawInput, make_raw
from edgeopt.errors import DataError
from edgeopt.records.preprocessing import ImagePreprocessing, Preprocessing

_UNKNOWN_IMAGES = (
    "The task has no `preprocessing` as data, and an app that guesses it is silently wrong. Give the task "
    "`preprocessing=edgeopt.ImagePreprocessing(...)` (`edgeopt guide app`)."
)
_UNKNOWN_INPUTS = (
    "The task has no `preprocessing`, and an app that guesses how inputs are made is silently wrong. Say it in words, "
    "or for sounds with edgeopt.SoundPreprocessing(...) (`edgeopt guide app`)."
)
_ROUNDED = (
    "The inputs of '{name}' are not made of whole pixels or samples by the preprocessing that the task states. "
    "Resizing after decoding does that, and so does a wrong mean or scale: compare it with the training."
)


class GoldenInput(NamedTuple):
    """Samples of an input."""

    values: Array
    sample_axis: int | None
    is_dynamic: bool
    """Whether its samples may have other sizes."""


class StatedInputs(NamedTuple):
    """What a task states of its inputs, compared with its samples."""

    preprocessing: dict[str, Preprocessing]
    """By input, as far as the samples do not contradict it."""
    raw: dict[str, RawInput]
    """The golden inputs of these, as files."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def compare_inputs(
    stated: str | Preprocessing | Mapping[str, Preprocessing], golden: Mapping[str, GoldenInput], *, only_file: bool
) -> StatedInputs:
    """Compare what a task states of its inputs with its samples.

    Args:
        stated: In words, for the first input, or by input.
        golden: Samples by input.
        only_file: Whether the user has nothing but the model's file, and so does not know more.
    """
    warnings, notes, raw = list[str](), list[str](), dict[str, RawInput]()
    by_input: dict[str, Preprocessing] = {}
    if isinstance(stated, Mapping):
        by_input = dict(stated)
    elif not isinstance(stated, str):
        by_input = {next(iter(golden)): stated}
    elif not stated and not only_file:
        images = any(one.values.ndim == 4 and one.values.dtype.kind in "fu" for one in golden.values())
        warnings.append(_UNKNOWN_IMAGES if images else _UNKNOWN_INPUTS)
    for name, how in by_input.items():
        try:
            raw[name] = _make_raw(golden, name, how)
        except DataError as error:
            warnings.append(f"The task's own preprocessing does not give its inputs: {error}")
            continue
        if raw[name].is_rounded:
            notes.append(_ROUNDED.format(name=name))
    return StatedInputs({name: by_input[name] for name in raw}, raw, tuple(warnings), tuple(notes))


def _make_raw(golden: Mapping[str, GoldenInput], name: str, how: Preprocessing) -> RawInput:
    """Return the golden samples of an input as files.

    Raises:
        DataError: they cannot come from files by this preprocessing.
    """
    if name not in golden:
        raise DataError(f"'{name}' is not among the inputs {', '.join(golden)}.")
    values, sample_axis, is_dynamic = golden[name]
    if sample_axis != 0:
        raise DataError(f"the samples of '{name}' are not along its first dimension.")
    if isinstance(how, ImagePreprocessing) and how.height is None and not is_dynamic:
        shape = "x".join(map(str, values.shape[2:] if how.layout == "nchw" else values.shape[1:3]))
        raise DataError(f"'{name}' takes images of {shape} only, but its preprocessing has no height and width.")
    return make_raw(name, values, how)

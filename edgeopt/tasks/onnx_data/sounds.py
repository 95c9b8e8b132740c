"""A folder of sounds: one channel as samples between -1 and 1, or as 16-bit integers, of any length.

``soundfile`` reads them if it is installed; otherwise the standard library reads ``.wav`` files of integers.
"""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, InputError
from edgeopt.records.preprocessing import DataOptions, Preprocessing, SoundPreprocessing
from edgeopt.tasks.onnx_data.samples import InputArrays
from edgeopt.tasks.onnx_data.specs import InputAxes, InputSpec

_RATE_NAMES = ("sr", "sample_rate", "samplerate", "sampling_rate", "rate")
"""Inputs that take the number of samples a second."""
STEPS_DIMENSION = "steps"
"""Name of the dimension along which a recurrent model's chunks follow each other."""
_ArrayReader = Callable[[Path], list[InputArrays]]


def sound_reader(
    first: Path, inputs: Sequence[InputSpec], axes: InputAxes, options: DataOptions
) -> tuple[_ArrayReader, Callable[[], dict[str, Preprocessing] | None]]:
    """Return what reads one sound as samples of the model, and what says how, once one was read.

    A model of a fixed length gets pieces of this length, the rest of a sound is left out; one that is shorter is filled
    with zeros.

    Args:
        first: Named in errors.
        inputs: Of the model: one for the sound, and possibly one for its sample rate.
        axes: The batch of each.
        options: ``sizes`` has the length of a chunk if the model has states and says none.

    Raises:
        InputError: the model takes no sounds.
    """
    rates = [spec for spec in inputs if spec.name.casefold() in _RATE_NAMES]
    sounds = [spec for spec in inputs if spec not in rates]
    if len(sounds) != 1 or sounds[0].dimensions is None:
        raise InputError(
            f"{first.parent} has sounds, but the model has the inputs {', '.join(spec.name for spec in inputs)}. "
            "Give a folder with an .npz for each sample, or a Python function (file.py:samples)."
        )
    spec = sounds[0]
    sizes = [size for axis, size in enumerate(spec.dimensions or ()) if axis != axes[spec.name]]
    has_steps = STEPS_DIMENSION in spec.names
    length = _length_of(spec, sizes[1:] if has_steps else sizes, has_steps, options)
    shape = [1] * (len(sizes) - 1 - has_steps)

    known_rates: dict[int, Path] = {}

    def read(path: Path) -> list[InputArrays]:
        values, rate = _read(path, is_integer=spec.dtype.kind == "i")
        known_rates.setdefault(rate, path)
        if len(known_rates) > 1 and not rates:
            (rate, other), (other_rate, _) = known_rates.items()
            raise DataError(
                f"{other} has {rate:,} samples a second, and {path} has {other_rate:,}: the model cannot tell them "
                "apart. Resample them to the rate that it was trained on."
            )
        rest = {one.name: np.array(rate, one.dtype).reshape([1] * len(one.dimensions or ())) for one in rates}
        if length is None:
            return [{spec.name: values.reshape(*shape, -1), **rest}]
        if len(values) < length:
            values = np.pad(values, (0, length - len(values)))
        chunks = values[: len(values) // length * length].reshape(-1, *shape, length)
        return [{spec.name: one, **rest} for one in ([chunks] if has_steps else chunks)]

    def preprocessing() -> dict[str, Preprocessing] | None:
        if len(known_rates) != 1:
            return None  # the model takes sounds of any rate
        (rate,) = known_rates
        peak = 2.0**15 if spec.dtype.kind == "i" else 1.0
        return {spec.name: SoundPreprocessing(sample_rate=rate, samples=length, peak=peak)}

    return read, preprocessing


def _length_of(spec: InputSpec, sizes: list[int | None], has_steps: bool, options: DataOptions) -> int | None:
    """Return how long a piece is; None for whole sounds."""
    if spec.dtype.kind not in "fi" or any(size not in (None, 1) for size in sizes[:-1]):
        raise InputError(
            f"the model's input '{spec.name}' takes {spec.dtype.name} {spec.shown}, which is not a sound as it is. "
            "Give a folder of .npy files with its features, or a Python function (file.py:samples)."
        )
    asked = options.sizes.get(spec.name, (None,))[-1] if has_steps else None  # else it is a size to measure at
    length = sizes[-1] or asked
    if has_steps and length is None:
        raise InputError(
            f"the model has states, and its input '{spec.name}' takes {spec.shown}: say how long a chunk is with "
            f"--shape {spec.name}=1x512."
        )
    return length


def _read(path: Path, *, is_integer: bool) -> tuple[NDArray[Any], int]:
    """Return one channel and the sample rate."""
    try:
        import soundfile
    except (ImportError, OSError):  # not installed, or without its library
        values, rate = _read_wave(path)
    else:
        try:
            values, rate = soundfile.read(path, dtype="float64", always_2d=True)
        except (soundfile.SoundFileError, OSError, RuntimeError) as error:
            raise DataError(f"{path} cannot be read as a sound: {error}.") from error
    mono = values.mean(1)
    if not len(mono):
        raise DataError(f"{path} has no samples. Leave it out.")
    if is_integer:
        return np.clip(np.rint(mono * 2**15), -(2**15), 2**15 - 1).astype(np.int16), int(rate)
    return mono.astype(np.float32), int(rate)


_MAX_SAMPLE_BYTES = 4
_DAMAGED = (wave.Error, OSError, EOFError, RuntimeError, OverflowError, ValueError, MemoryError, struct.error)
"""What the standard library raises for a damaged file."""


def _read_wave(path: Path) -> tuple[NDArray[np.float64], int]:
    """Return a ``.wav`` of integers as values of -1 to 1, of shape (samples, channels), and its rate."""
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            content = file.readframes(file.getnframes())
    except _DAMAGED as error:
        raise DataError(
            f"{path} cannot be read as a .wav of integers: {str(error) or 'it is damaged'}. For other formats: pip "
            "install soundfile."
        ) from error
    if width > _MAX_SAMPLE_BYTES:
        raise DataError(f"{path} has {8 * width} bits for each sample; at most {8 * _MAX_SAMPLE_BYTES} are read.")
    content = content[: len(content) // (width * channels) * width * channels]
    raw = np.frombuffer(content, np.uint8).reshape(-1, channels, width).astype(np.int64)
    if width == 1:
        return (raw[..., 0] - 128) / 128.0, rate
    numbers = sum(raw[..., byte] << (8 * byte) for byte in range(width))
    limit = 1 << (8 * width - 1)
    return (np.where(numbers >= limit, numbers - 2 * limit, numbers) / limit), rate

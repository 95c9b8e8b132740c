"""Spoken digits as arrays: 3,000 recordings of six speakers at 8 kHz (Free Spoken Digit Dataset, CC BY-SA 4.0).

They are read from ``fsdd/recordings`` in ``EDGEOPT_DATA``. A recording becomes one second: cut, or with silence around.
"""

from __future__ import annotations

import os
import re
import wave
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError

SpeechPart = Literal["train", "selection", "test"]
SpeechSplit = Literal["take", "speaker"]
"""``take``: the same six speakers in each part. ``speaker``: one speaker selects, another one tests."""

RATE = 8000
"""Samples a second."""
_FILE_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav")
_TEST_TAKES, _SELECTION_TAKES = range(5), range(5, 15)
"""The first five are the official test set."""
_SELECTION_SPEAKER, _TEST_SPEAKER = "theo", "yweweler"
_RECORDINGS = 3000


class Words(NamedTuple):
    """``waves`` is float32 ``(n, 8000)`` in -1..1, each word in the middle; ``labels`` is int64 ``(n,)``, 0 to 9."""

    waves: NDArray[np.float32]
    labels: NDArray[np.int64]


def load_words(part: SpeechPart, split: SpeechSplit = "take") -> Words:
    """Return a part, in the order of the files' names.

    Raises:
        DataError: the data are not there, or a file is not what it should be.
    """
    root = os.environ.get("EDGEOPT_DATA")
    folder = Path(root or ".") / "fsdd" / "recordings"
    if root is None or not folder.is_dir():
        raise DataError(
            "The spoken digits are not there. `python tools/fetch_data.py DIR fsdd` downloads them; then set "
            "EDGEOPT_DATA=DIR."
        )
    paths = sorted(folder.glob("*.wav"))
    named = [(path, _FILE_NAME.fullmatch(path.name)) for path in paths]
    if len(named) != _RECORDINGS or not all(match for _, match in named):
        raise DataError(f"{folder}: has {len(paths)} recordings, not {_RECORDINGS:,}. Download the digits again.")
    chosen = [(path, match) for path, match in named if match and _part_of(match, split) == part]
    return Words(
        np.stack([_read_second(path) for path, _ in chosen]),
        np.array([int(match["digit"]) for _, match in chosen], np.int64),
    )


def _part_of(match: re.Match[str], split: SpeechSplit) -> SpeechPart:
    if split == "speaker":
        parts: dict[str, SpeechPart] = {_SELECTION_SPEAKER: "selection", _TEST_SPEAKER: "test"}
        return parts.get(match["speaker"], "train")
    take = int(match["take"])
    return "test" if take in _TEST_TAKES else "selection" if take in _SELECTION_TAKES else "train"


def _read_second(path: Path) -> NDArray[np.float32]:
    """Return the middle second of a recording, or all of it in the middle of a silent one."""
    try:
        with wave.open(str(path)) as file:
            form = file.getframerate(), file.getsampwidth(), file.getnchannels()
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    except (OSError, EOFError, wave.Error, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a sound ({error}). Download the digits again.") from error
    if form != (RATE, 2, 1):
        raise DataError(f"{path}: is not mono, 16 bits, {RATE} Hz. Download the digits again.")
    start = max(0, (len(samples) - RATE) // 2)
    samples = samples[start : start + RATE]
    before = (RATE - len(samples)) // 2
    return np.pad(samples, (before, RATE - len(samples) - before))

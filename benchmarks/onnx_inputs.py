"""Inputs that look real for real ``.onnx`` files: spoken phrases, music, rendered digits, files, brain waves.

Each function returns arrays by the name that ``edgeopt build --data`` takes, one row a sample, and the same ones each
time. Nothing is downloaded; speech is made by espeak-ng.
"""

from __future__ import annotations

import functools
import io
import itertools
import subprocess
import sysconfig
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from scipy import ndimage, signal

Arrays = dict[str, NDArray[Any]]
_RATE = 16000
_PHRASES = (
    "alexa", "hey mycroft", "hey rhasspy", "what is the weather like today", "turn the lights off in the kitchen",
    "set a timer for ten minutes", "the quick brown fox jumps over the lazy dog", "alexander met my craft teacher",
    "hey Microsoft", "hey raspberry", "play the next song", "seven, three, nine, zero, one",
)  # fmt: skip
_WINDOWS_AT_A_TIME = 1000
_SPEEDS = range(120, 200, 10)
_PITCHES = (30, 45, 60, 75)
_VOICES = ("en-us", "en-gb", "en-us+f2", "en-us+m3", "en-gb-scotland+f4", "en-us+f3", "en-gb+m7", "en-us+m1")
_DIGITS = (
    "01110100011001110101110011000101110", "00100011000010000100001000010001110", "01110100010000100110010001000011111",
    "11111000100010000010000011000101110", "00010001100101010010111110001000010", "11111100001111000001000011000101110",
    "00110010001000011110100011000101110", "11111000010001000100010000100001000", "01110100011000101110100011000101110",
    "01110100011000101111000010001001100",
)  # fmt: skip
"""Seven rows of five pixels each."""


@functools.cache
def _utter(phrase: str, voice: str, speed: int, pitch: int) -> NDArray[np.float32]:
    """Return a phrase at 16 kHz in -1..1, by espeak-ng; words a minute, and a pitch of 0 to 99."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", phrase]
    try:
        spoken = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise SystemExit(
            "espeak-ng, which makes the speech, is not installed (Debian: apt install espeak-ng)."
        ) from error
    with wave.open(io.BytesIO(spoken)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
        return signal.resample_poly(samples, _RATE, file.getframerate()).astype(np.float32)


def _say(
    random: np.random.RandomState, samples: int, wake_word: str = ""
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return a waveform in -1..1 at 16 kHz, and where wake words end in it.

    It has phrases of several voices, speeds and pitches, half of them a wake word if one is given.
    """
    pieces, length, ends = [], 0, []
    while length < samples:
        phrase = wake_word if wake_word and random.rand() < 0.5 else _PHRASES[random.randint(len(_PHRASES))]
        voice, speed, pitch = (values[random.randint(len(values))] for values in (_VOICES, _SPEEDS, _PITCHES))
        spoken = _utter(phrase, voice, speed, pitch) * random.uniform(0.3, 0.9)
        if phrase == wake_word:
            ends.append(length + len(spoken))
        pieces += [spoken, np.zeros(random.randint(3000, 20000))]
        length += sum(map(len, pieces[-2:]))
    sound = np.concatenate(pieces)[:samples]
    noisy = (sound + random.uniform(0.001, 0.004) * random.randn(samples)).clip(-1, 1)
    return noisy.astype(np.float32), np.array(ends, np.int64)


def speech(
    name: str,
    samples: int,
    count: int = 256,
    scale: float = 1.0,
    zeros: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, int] | None = None,
    shared: Mapping[str, Sequence[int]] | None = None,
) -> Arrays:
    """Return pieces of speech; ``zeros`` are states of each sample, with the batch on the axis that the name says."""
    random = np.random.RandomState(0)
    waves = _say(random, samples * count)[0].reshape(count, samples) * np.float32(scale)
    arrays: Arrays = {name: waves}
    for state, shape in (zeros or {}).items():
        axis = int(state.partition(":")[2] or 0)
        arrays[state] = np.zeros((*shape[:axis], count, *shape[axis:]), np.float32)
    arrays |= {key: np.array(value) for key, value in (constants or {}).items()}
    return arrays | {key: np.zeros(shape, np.float32) for key, shape in (shared or {}).items()}


@functools.cache
def _open(model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])


def _run(model: Path, values: NDArray[Any]) -> NDArray[Any]:
    session = _open(model)
    return np.array(session.run(None, {session.get_inputs()[0].name: values})[0])  # a copy, not the session's memory


def _mel_windows(sound: NDArray[np.float32], mel_file: Path, count: int) -> NDArray[np.float32]:
    """Return windows of 76 frames with 32 mel bands, 8 frames apart, from the package's own first stage."""
    windows = []
    for begin in range(0, count, _WINDOWS_AT_A_TIME):
        some = min(_WINDOWS_AT_A_TIME, count - begin)
        piece = sound[160 * 8 * begin : 160 * (8 * (begin + some) + 80)] * np.float32(32767)
        mels = _run(mel_file, piece[None]).reshape(-1, 32) / 10 + 2
        windows += [mels[start : start + 76, :, None] for start in range(0, 8 * some, 8)]
    return np.stack(windows).astype(np.float32)


def speech_mels(name: str, needs: Sequence[Path], count: int = 256) -> Arrays:
    """Return windows of 76 frames with 32 mel bands."""
    return {name: _mel_windows(_say(np.random.RandomState(1), 160 * (8 * count + 80))[0], needs[0], count)}


def speech_features(name: str, needs: Sequence[Path], wake_word: str, count: int) -> Arrays:
    """Return windows of 16 speech embeddings, from the package's own first two stages.

    Half of them end in the half second after a wake word, as in recordings of people who say it: in running speech a
    file of this kind answers yes so rarely that a few hundred samples would decide about it.
    """
    random, total = np.random.RandomState(1), 5 * count
    sound, wake_ends = _say(random, 160 * (8 * (total + 16) + 80), wake_word)
    windows = _mel_windows(sound, needs[0], total + 16)
    parts = [windows[at : at + _WINDOWS_AT_A_TIME] for at in range(0, len(windows), _WINDOWS_AT_A_TIME)]
    embedded = np.concatenate([_run(needs[1], part).reshape(-1, 96) for part in parts])
    window_ends = 160 * (8 * (np.arange(total) + 15) + 76)
    last = np.searchsorted(wake_ends, window_ends, side="right") - 1
    after = (last >= 0) & (window_ends - wake_ends[last] < _RATE // 2)
    chosen = [
        random.choice(np.flatnonzero(those), min(count // 2, int(those.sum())), replace=False)
        for those in (after, ~after)
    ]
    starts = np.sort(np.concatenate(chosen))
    return {name: np.stack([embedded[start : start + 16] for start in starts]).astype(np.float32)}


def music(name: str, samples: int, count: int) -> Arrays:
    """Return chords with overtones at 22.05 kHz, shape ``(count, samples, 1)``."""
    random, time = np.random.RandomState(0), np.arange(samples) / 22050
    waves = 0.003 * random.randn(count, samples)
    for index in range(count):
        for note in random.randint(40, 85, random.randint(1, 5)):
            start, pitch = random.uniform(0, 1.2), 440 * 2 ** ((note - 69) / 12)
            envelope = np.where(time > start, np.exp(-random.uniform(1, 5) * (time - start)), 0)
            waves[index] += sum(0.15 / k * np.sin(2 * np.pi * k * pitch * time) for k in range(1, 6)) * envelope
    return {name: waves[..., None].clip(-1, 1).astype(np.float32)}


def _draw_number(
    random: np.random.RandomState, page: NDArray[Any], top: int, left: int, scale: int, length: int
) -> None:
    """Write digits in black into a page of 0..1."""
    for digit in random.randint(10, size=length):
        glyph = np.array([pixel == "1" for pixel in _DIGITS[digit]]).reshape(7, 5).repeat(scale, 0).repeat(scale, 1)
        area = page[top : top + glyph.shape[0], left : left + glyph.shape[1]]
        area[glyph[: area.shape[0], : area.shape[1]]] *= 0.1
        left += 6 * scale


def _as_image(random: np.random.RandomState, page: NDArray[Any]) -> NDArray[np.float32]:
    """Return a grey page as ``(3, height, width)`` in -1..1, blurred, tinted and noisy."""
    blurred = ndimage.gaussian_filter(page, random.uniform(0.3, 1.0)) + 0.02 * random.randn(*page.shape)
    tint = random.uniform(0.8, 1.0, (3, 1, 1))
    return ((blurred * tint).clip(0, 1) * 2 - 1).astype(np.float32)


def text_lines(name: str, height: int, width: int, count: int, turned: bool = False) -> Arrays:
    """Return lines of digits; every second one upside down if ``turned``."""
    random, images = np.random.RandomState(0), []
    for index in range(count):
        page, scale = np.full((height, width), random.uniform(0.7, 1.0)), random.randint(3, height // 9 + 1)
        most = max(1, min(8, width // (6 * scale)))
        _draw_number(random, page, (height - 7 * scale) // 2, random.randint(1, 8), scale, random.randint(1, most + 1))
        images.append(_as_image(random, page[::-1, ::-1] if turned and index % 2 else page))
    return {name: np.stack(images)}


def pages(name: str, height: int, width: int, count: int) -> Arrays:
    """Return pages with a few numbers at different places."""
    random, images = np.random.RandomState(0), []
    for _ in range(count):
        page = np.full((height, width), random.uniform(0.6, 1.0))
        for _ in range(random.randint(1, 6)):
            place = random.randint(0, height - 20), random.randint(0, width - 60)
            _draw_number(random, page, *place, random.randint(2, 5), random.randint(1, 6))
        images.append(_as_image(random, page))
    return {name: np.stack(images)}


def scenes(name: str, height: int, width: int, count: int, layout: str = "nchw", scale: float = 1.0) -> Arrays:
    """Return colour images of smooth backgrounds with skin-coloured ellipses, in 0..1 times ``scale``."""
    random, images = np.random.RandomState(0), []
    rows, columns = np.mgrid[:height, :width]
    for _ in range(count):
        image = ndimage.zoom(random.rand(3, 6, 6), (1, height / 6, width / 6), order=1)[:, :height, :width]
        for _ in range(random.randint(2, 8)):
            y, x, a, b = (random.uniform(0.0, 1.0) for _ in range(4))
            inside = ((rows - y * height) / (20 + a * 60)) ** 2 + ((columns - x * width) / (15 + b * 50)) ** 2 < 1
            shade = np.array([[0.9], [0.7], [0.6]]) * random.uniform(0.5, 1.1)
            image[:, inside] = shade * (1 - 0.3 * random.rand())
        images.append((ndimage.gaussian_filter(image, (0, 1, 1)) + 0.02 * random.randn(*image.shape)).clip(0, 1))
    found = (np.stack(images) * scale).astype(np.float32)
    return {name: found.transpose(0, 2, 3, 1).copy() if layout == "nhwc" else found}


def file_contents(name: str, count: int = 256) -> Arrays:
    """Return the first and the last 1,024 bytes of files of the Python installation; 256 marks what is missing."""
    folder, kinds = Path(sysconfig.get_paths()["stdlib"]), ("py", "pyc", "txt", "so", "c", "h", "json", "toml", "cfg")
    found = [sorted(folder.rglob(f"*.{kind}")) for kind in kinds]
    rows = []
    for path in [path for same in itertools.zip_longest(*found) for path in same if path is not None][:count]:
        data = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32)
        row = np.full(2048, 256, np.int32)
        row[: min(1024, len(data))] = data[:1024]
        row[2048 - min(1024, len(data)) :] = data[-1024:]
        rows.append(row)
    return {name: np.stack(rows)}


def fingerprints(name: str, size: int, count: int) -> Arrays:
    """Return ridges around a centre in 0..1, shape ``(count, size, size, 1)``."""
    random, (rows, columns) = np.random.RandomState(0), np.mgrid[:size, :size]
    images = []
    for _ in range(count):
        y, x = random.uniform(0.3, 0.7, 2) * size
        bend = ndimage.gaussian_filter(random.randn(size, size), 12) * random.uniform(40, 120)
        distance = np.hypot((rows - y) * random.uniform(0.6, 1.0), columns - x) + bend
        ridges = 0.5 + 0.5 * np.sin(distance * 2 * np.pi / random.uniform(7, 11))
        images.append((ridges + 0.1 * random.randn(size, size)).clip(0, 1)[..., None])
    return {name: np.stack(images).astype(np.float32)}


def eeg(name: str, spectrogram: str, samples: int, bands: int, count: int) -> Arrays:
    """Return pink noise with bursts of 12 to 15 Hz at 250 Hz, and the power of its lowest bands."""
    random, time = np.random.RandomState(0), np.arange(samples) / 250
    slope = 1 / np.sqrt(np.maximum(np.fft.rfftfreq(samples, 1 / 250), 0.5))
    waves = np.fft.irfft(np.fft.rfft(random.randn(count, samples)) * slope, samples)
    for index in range(count):
        for _ in range(random.randint(0, 5)):
            burst = np.exp(-(((time - random.uniform(0, time[-1])) / 0.4) ** 2))
            waves[index] += 1.5 * burst * np.sin(2 * np.pi * random.uniform(12, 15) * time)
    waves /= waves.std(1, keepdims=True)
    filters = [signal.butter(2, (2 * k + 1, 2 * k + 3), "bandpass", fs=250, output="sos") for k in range(bands)]
    power = np.stack([np.log(signal.sosfiltfilt(sos, waves) ** 2 + 1e-3) for sos in filters], axis=1)
    return {name: waves[:, None].astype(np.float32), spectrogram: power.astype(np.float32)}


def table(name: str, columns: int, count: int = 512) -> Arrays:
    """Return rows of a table in float64: counts, shares and measurements."""
    random = np.random.RandomState(0)
    values = random.lognormal(1, 1, (count, columns))
    values[:, ::3] = random.rand(count, len(range(0, columns, 3)))
    values[:, 1::3] = np.floor(values[:, 1::3])
    return {name: values}


def token_ids(
    ids: str,
    length: int,
    largest: int,
    count: int = 128,
    mask: str | None = None,
    bool_mask: str | None = None,
    zeros: str | None = None,
) -> Arrays:
    """Return token ids, frequent ones more often, padded with 0 to one length; ``bool_mask`` marks the padding."""
    random = np.random.RandomState(0)
    values = np.minimum(random.zipf(1.3, (count, length)) + 3, largest).astype(np.int64)
    padding = np.arange(length)[None] >= random.randint(length // 3, length + 1, count)[:, None]
    values[padding] = 0
    arrays: Arrays = {ids: values}
    arrays |= {mask: (~padding).astype(np.int64)} if mask else {}
    arrays |= {bool_mask: padding} if bool_mask else {}
    return arrays | ({zeros: np.zeros_like(values)} if zeros else {})


MAKERS: dict[str, Callable[..., Arrays]] = {
    maker.__name__: maker
    for maker in (
        speech, speech_mels, speech_features, music, text_lines, pages, scenes, file_contents, fingerprints, eeg, table,
        token_ids,
    )
}  # fmt: skip

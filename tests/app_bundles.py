"""Bundles of small real models as a build writes them, for tests of what an app does with them."""

import wave
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.helper
import onnxruntime
import torch
from builders import a_choice
from tiny_bundles import AN_ORIGIN, a_golden

from edgeopt.bundle.box_answers import BoxMaps, find_box_answers
from edgeopt.bundle.golden import find_answers
from edgeopt.bundle.raw_inputs import input_of_pixels, make_raw, make_resized, pixels_of
from edgeopt.bundle.write import write_bundle
from edgeopt.export.to_onnx import export
from edgeopt.records.preprocessing import ImagePreprocessing, SoundPreprocessing

IMAGES = ImagePreprocessing(
    height=20, width=24, resize="crop", color="bgr", mean=(0.41, 0.46, 0.48), std=(0.24, 0.22, 0.2)
)
WORDS = SoundPreprocessing(sample_rate=8000, samples=4000, align="middle")
PLAIN_IMAGES = ImagePreprocessing(height=20, width=24, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SOUNDS = SoundPreprocessing(sample_rate=8000, samples=800, align="middle")
COLORS = ("blue", "green", "red")
BOX_MAPS = BoxMaps(heatmap="y", sides="s", stride=4, log_sides=(-4.0, 6.0), min_score=0.3, max_boxes=100)
BOX_RULES = {"boxes": "crop", "stretched boxes": "stretch", "padded boxes": "pad"}
"""Kind of a bundle to the rule by which it resizes."""
TONES = {"low": 400, "high": 1200}
"""Hertz."""


def draw_pixels(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    """A smooth picture in which every channel, side and corner differs."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = [np.sin(3 * rows + 2 * channel + seed) + columns * (channel + 1) / 2 for channel in range(3)]
    picture = np.stack(channels, axis=-1)
    return np.rint(40 + 170 * (picture - picture.min()) / np.ptp(picture)).astype(np.uint8)


def save_model(path: Path, nodes, shapes, weights) -> Path:
    """Save a graph from ``x`` to ``y`` with a dynamic batch."""
    values = [onnx.helper.make_tensor_value_info(n, 1, ["batch", *s]) for n, s in zip("xy", shapes, strict=True)]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def image_model(path: Path) -> Path:
    """Scores of three classes, by the mean of each channel and its place."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((3, 3, 3, 3)).astype(np.float32) + 2 * np.eye(3, dtype=np.float32)[..., None, None],
        "p": rng.standard_normal((3 * 20 * 24, 3)).astype(np.float32) / 40,
    }
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Flatten", ["c"], ["f"]),
        onnx.helper.make_node("MatMul", ["f", "p"], ["y"]),
    ]
    return save_model(path, nodes, [(3, 20, 24), (3,)], weights)


def pixel_model(path: Path) -> Path:
    """Scores of three classes for each pixel: its colour, and a little of its neighbours'."""
    kernel = np.full((3, 3), 0.05, np.float32)
    kernel[1, 1] = 0.6
    weights = {"w": np.eye(3, dtype=np.float32)[..., None, None] * kernel}
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    return save_model(path, [node], [(3, 20, 24), (3, 20, 24)], weights)


def draw_flag(scale: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A picture ``scale`` times as large as the model's input, and the class of each pixel of the input.

    Above, the colours stand side by side; below, all is the last one.
    """
    classes = np.full((20, 24), 2)
    classes[:10] = np.repeat([0, 1, 2], 8)
    levels = np.array([[30, 60, 220], [50, 210, 40], [230, 40, 20]], np.uint8)  # blue, green, red
    return np.kron(levels[classes], np.ones((scale, scale, 1), np.uint8)), classes


def word_model(path: Path) -> Path:
    """Scores of two classes of a sound, by the energy at the frequency of each."""
    places = np.arange(80) / 8000
    waves = [turn(2 * np.pi * tone * places) for tone in TONES.values() for turn in (np.cos, np.sin)]
    weights = {
        "w": np.stack(waves).astype(np.float32)[:, None],
        "axis": np.array([1]),
        "sum": np.kron(np.eye(2), np.ones((2, 1))).astype(np.float32),
    }
    nodes = [
        onnx.helper.make_node("Unsqueeze", ["x", "axis"], ["u"]),
        onnx.helper.make_node("Conv", ["u", "w"], ["c"], strides=[40]),
        onnx.helper.make_node("Mul", ["c", "c"], ["e"]),
        onnx.helper.make_node("ReduceMean", ["e"], ["m"], axes=[2], keepdims=0),
        onnx.helper.make_node("MatMul", ["m", "sum"], ["y"]),
    ]
    return save_model(path, nodes, [(4000,), (2,)], weights)


def write_word(path: Path, label: str, rate: int) -> Path:
    """Write a stereo ``.wav`` of 1.5 s whose middle is a word; another one is before it.

    Above 8,000 samples a second it also has a loud tone that the model's rate cannot hold, and that becomes the other
    word for an app that leaves samples out instead of resampling.
    """
    times = np.arange(rate * 3 // 2) / rate
    (other,) = (tone for name, tone in TONES.items() if name != label)
    wave_form = 0.1 * np.sin(2 * np.pi * TONES[label] * times)
    before = times < 0.4
    wave_form[before] = 0.5 * np.sin(2 * np.pi * other * times[before])
    if rate > 2 * (8000 - other):
        wave_form += 0.3 * np.sin(2 * np.pi * (8000 - other) * times)
    samples = np.rint(np.stack([wave_form * 1.2, wave_form * 0.8], axis=1) * 2**15).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def sound_model(path: Path) -> Path:
    """Scores of two classes of a sound."""
    weights = {"w": np.random.default_rng(1).standard_normal((800, 2)).astype(np.float32)}
    return save_model(path, [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], [(800,), (2,)], weights)


class RectangleFinder(torch.nn.Module):
    """The maps of a detector that finds at most one rectangle of each colour, on black, without any training."""

    def forward(self, images):
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGES.mean, IMAGES.std))
        found = (images * std + mean > 0.5).float()  # by colour: blue, green and red
        height, width = images.shape[-2:]
        rows, columns = torch.arange(height).float(), torch.arange(width).float()
        in_column, in_row = found.amax(2), found.amax(3)
        right, bottom = ((columns + 1) * in_column).amax(2), ((rows + 1) * in_row).amax(2)
        left = width - ((width - columns) * in_column).amax(2)
        top = height - ((height - rows) * in_row).amax(2)
        x, y = ((torch.arange(size // 4) + 0.5) * 4 for size in (width, height))
        away = [
            (x - ((left + right) / 2)[..., None])[:, :, None] / 4,
            (y - ((top + bottom) / 2)[..., None])[..., None] / 4,
        ]
        is_there = found.amax((2, 3))[:, :, None, None]
        heatmap = is_there * (12 - 3 * (away[0] ** 2 + away[1] ** 2)) - 8
        share = torch.softmax(50 * heatmap, 1)  # whose sides a place tells
        distances = [
            (share * (sign * (places - edge[..., None, None]))).sum(1) / 4
            for sign, places, edge in ((1, x, left), (1, y[:, None], top), (-1, x, right), (-1, y[:, None], bottom))
        ]
        return heatmap, torch.stack(distances, 1).clamp(0.02).log()


def draw_rectangles(seed: int, height: int = 20, width: int = 24) -> tuple[np.ndarray, dict[str, tuple[int, ...]]]:
    """A black picture with one to three rectangles apart from each other, and their corners by colour."""
    rng = np.random.default_rng(seed)
    picture, boxes = np.zeros((height, width, 3), np.uint8), {}
    levels = {"blue": (20, 20, 230), "green": (20, 230, 20), "red": (230, 20, 20)}
    slots = [(0, 0), (width // 2, 0), (0, height // 2)]
    for name, slot in zip(rng.permutation(COLORS)[: 1 + seed % 3], rng.permutation(slots), strict=False):
        wide, tall = int(rng.integers(4, width // 2)), int(rng.integers(4, height // 2))
        left = int(slot[0]) + int(rng.integers(0, width // 2 - wide))
        top = int(slot[1]) + int(rng.integers(0, height // 2 - tall))
        picture[top : top + tall, left : left + wide] = levels[str(name)]
        boxes[str(name)] = (left, top, left + wide, top + tall)
    return picture, boxes


def box_model(path: Path) -> Path:
    """Write the maps ``y`` and ``s`` of rectangles."""
    names = {"input_names": ("x",), "output_names": (BOX_MAPS.heatmap, BOX_MAPS.sides)}
    export(RectangleFinder(), (torch.zeros(2, 3, 20, 24),), path, max_opset=18, max_ir=8, **names)
    return path


def write_box_bundle(folder: Path, how: ImagePreprocessing) -> Path:
    """Write the bundle of the detector of rectangles."""
    model = box_model(folder / "m.onnx")
    plain = msgspec.structs.replace(how, height=None, width=None)
    batch = np.concatenate([input_of_pixels(draw_rectangles(seed)[0], plain) for seed in range(4)])
    raw = make_raw("x", batch, how)
    names = (BOX_MAPS.heatmap, BOX_MAPS.sides)
    outputs = dict(zip(names, onnxruntime.InferenceSession(str(model)).run(names, {"x": raw.values}), strict=True))
    golden = a_golden(
        {"x": raw.values}, outputs, raw={"x": raw}, resized={"x": make_resized(pixels_of("x", raw.values, how), how)}
    )  # fmt: skip
    golden = golden._replace(answers=find_box_answers(BOX_MAPS, outputs, golden.tolerances, COLORS))
    origin = msgspec.structs.replace(AN_ORIGIN, labels=COLORS, input_preprocessing={"x": how}, boxes=BOX_MAPS)
    write_bundle(folder / "out", a_choice(), model=model, golden=golden, origin=origin)
    return folder / "out"


def write_app_bundle(folder: Path, kind: str) -> Path:
    """Write the bundle of a model of images, of one of sounds or words, of class maps, or of boxes."""
    if kind in BOX_RULES:
        return write_box_bundle(folder, msgspec.structs.replace(IMAGES, resize=BOX_RULES[kind]))
    is_sound = kind in ("sounds", "words")
    if is_sound:
        make, how, labels = (sound_model, SOUNDS, ("low", "high")) if kind == "sounds" else (word_model, WORDS, TONES)
        model, labels = make(folder / "m.onnx"), tuple(labels)
        times = np.arange(how.samples) / 8000
        tones = np.stack([np.sin(2 * np.pi * tone * times) * (0.3 + times) for tone in (200, 440, 900, 1200)])
        batch = tones.astype(np.float32)
    else:
        model = (pixel_model if kind == "class maps" else image_model)(folder / "m.onnx")
        how, labels = PLAIN_IMAGES if kind == "plain images" else IMAGES, COLORS
        plain = msgspec.structs.replace(how, height=None, width=None)
        batch = np.concatenate([input_of_pixels(draw_pixels(seed), plain) for seed in range(4)])
    raw = make_raw("x", batch, how)
    (output,) = onnxruntime.InferenceSession(str(model)).run(None, {"x": raw.values})
    tolerance = 1e-3 * float(np.abs(output).max())
    resized = {} if is_sound else {"x": make_resized(pixels_of("x", raw.values, how), how)}
    golden = a_golden(
        {"x": raw.values}, {"y": output}, raw={"x": raw}, resized=resized,
        answers=find_answers("y", output, 1, labels, tolerance),
    )  # fmt: skip
    origin = msgspec.structs.replace(
        AN_ORIGIN, labels=labels, preprocessing=how.text, input_preprocessing={"x": how}, class_axes={"y": 1}
    )
    write_bundle(folder / "out", a_choice(), model=model, golden=golden, origin=origin)
    return folder / "out"

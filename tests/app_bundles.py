"""Bundles of small real models as a build writes them, for tests of what an app does with them."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.helper
import onnxruntime
from builders import a_choice
from tiny_bundles import AN_ORIGIN, a_golden

from edgeopt.bundle.golden import find_answers
from edgeopt.bundle.raw_inputs import input_of_pixels, make_raw, make_resized, pixels_of
from edgeopt.bundle.write import write_bundle
from edgeopt.records.preprocessing import ImagePreprocessing, SoundPreprocessing

IMAGES = ImagePreprocessing(
    height=20, width=24, resize="crop", color="bgr", mean=(0.41, 0.46, 0.48), std=(0.24, 0.22, 0.2)
)
PLAIN_IMAGES = ImagePreprocessing(height=20, width=24, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SOUNDS = SoundPreprocessing(sample_rate=8000, samples=800, align="middle")
COLORS = ("blue", "green", "red")


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


def image_model(path: Path, *, per_pixel: bool = False) -> Path:
    """Scores of three classes, by the mean of each channel and its place; for the picture or for each pixel."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((3, 3, 3, 3)).astype(np.float32) + 2 * np.eye(3, dtype=np.float32)[..., None, None]
    }
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y" if per_pixel else "c"], pads=[1, 1, 1, 1])]
    if not per_pixel:
        weights["p"] = rng.standard_normal((3 * 20 * 24, 3)).astype(np.float32) / 40
        nodes += [onnx.helper.make_node("Flatten", ["c"], ["f"]), onnx.helper.make_node("MatMul", ["f", "p"], ["y"])]
    return save_model(path, nodes, [(3, 20, 24), (3, 20, 24) if per_pixel else (3,)], weights)


def sound_model(path: Path) -> Path:
    """Scores of two classes of a sound."""
    weights = {"w": np.random.default_rng(1).standard_normal((800, 2)).astype(np.float32)}
    return save_model(path, [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], [(800,), (2,)], weights)


def write_app_bundle(folder: Path, kind: str) -> Path:
    """Write the bundle of a model of images, of one of sounds, or of class maps."""
    if kind == "sounds":
        model, how, labels = sound_model(folder / "m.onnx"), SOUNDS, ("low", "high")
        times = np.arange(800) / 8000
        tones = np.stack([np.sin(2 * np.pi * tone * times) * (0.3 + times) for tone in (200, 440, 900)])
        batch = tones.astype(np.float32)
    else:
        model = image_model(folder / "m.onnx", per_pixel=kind == "class maps")
        how, labels = PLAIN_IMAGES if kind == "plain images" else IMAGES, COLORS
        plain = msgspec.structs.replace(how, height=None, width=None)
        batch = np.concatenate([input_of_pixels(draw_pixels(seed), plain) for seed in range(4)])
    raw = make_raw("x", batch, how)
    (output,) = onnxruntime.InferenceSession(str(model)).run(None, {"x": raw.values})
    tolerance = 1e-3 * float(np.abs(output).max())
    resized = {} if kind == "sounds" else {"x": make_resized(pixels_of("x", raw.values, how), how)}
    golden = a_golden(
        {"x": raw.values}, {"y": output}, raw={"x": raw}, resized=resized,
        answers=find_answers("y", output, 1, labels, tolerance),
    )  # fmt: skip
    origin = msgspec.structs.replace(
        AN_ORIGIN, labels=labels, preprocessing=how.text, input_preprocessing={"x": how}, class_axes={"y": 1}
    )
    write_bundle(folder / "out", a_choice(), model=model, golden=golden, origin=origin)
    return folder / "out"

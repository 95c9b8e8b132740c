"""Run the model of this bundle, without edgeopt.

    pip install numpy onnxruntime pillow
    python samples/python/run.py              # does this machine compute what the build computed?
    python samples/python/run.py FILE         # the model's answer for an image or a .wav (a stream: after its end)
    python samples/python/run.py FILE OUT.png # also writes the image with its boxes, or its map of class numbers

Everything that is known of the model is in ``manifest.json``; take from this file what your app needs.
"""

from __future__ import annotations

import json
import math
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

BUNDLE = Path(__file__).resolve().parents[2]
SHOWN_CLASSES = 3
ZERO_CROSSINGS = 16  # of the filter that resamples, on each side


def prepare_image(path: Path, how: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return an image as a batch of one sample, as the manifest says."""
    image = open_image(path)
    image = image.convert("L" if how["color"] == "gray" else "RGB")
    pixels = np.asarray(resize_to_fit(image, how))
    pixels = pixels.reshape(*pixels.shape[:2], -1)  # (height, width, channels)
    if how["color"] == "bgr":
        pixels = pixels[..., ::-1]
    if how["dtype"] == "float32":
        scaled = pixels.astype(np.float32) / np.float32(how["scale"])
        pixels = (scaled - np.array(how["mean"], np.float32)) / np.array(how["std"], np.float32)
    if how["layout"] == "nchw":
        pixels = np.moveaxis(pixels, 2, 0)
    return np.ascontiguousarray(pixels)[None]


def open_image(path: Path) -> Any:
    """Return an image, upright, of 8 bits a channel; those of 16 bits are divided by 257."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise SystemExit(f"{path} has pixels of no known range: save it with 8 or 16 bits.")
    return image.convert("RGBA") if image.mode in ("P", "PA") else image


def fit_of(size: tuple[int, int], how: dict[str, Any]) -> tuple[int, int, int, int]:
    """Return the width and height to which an image is resized, and where the model's input begins in it: left, top."""
    (old_width, old_height), height, width = size, how["height"], how["width"]
    if height is None:
        return old_width, old_height, 0, 0
    if how["resize"] == "stretch":
        return width, height, 0, 0
    if how["resize"] == "pad":
        ratio = min(width / old_width, height / old_height)
        wide, tall = (max(1, round(side * ratio)) for side in size)
        return wide, tall, -((width - wide) // 2), -((height - tall) // 2)
    if old_height * width >= old_width * height:  # crop: the shorter side decides
        wide = round(width / how["crop_ratio"])
        tall = int(wide * old_height / old_width)
    else:
        tall = round(height / how["crop_ratio"])
        wide = int(tall * old_width / old_height)
    return wide, tall, round((wide - width) / 2), round((tall - height) / 2)


def resize_to_fit(image: Any, how: dict[str, Any]) -> Any:
    """Return an image in the size that the model takes; pixels outside of it are black."""
    from PIL import Image

    wide, tall, left, top = fit_of(image.size, how)
    resized = image.resize((wide, tall), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + (how["width"] or wide), top + (how["height"] or tall)))


def read_sound(path: Path) -> tuple[np.ndarray[Any, Any], int]:
    """Return the mean of the channels of a .wav of 16 bits, in -1 to 1, and its samples a second."""
    try:
        with wave.open(str(path)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise SystemExit(f"{path} cannot be read as a .wav of 16 bits ({error}).") from error
    if width != 2:
        raise SystemExit(f"{path} has {8 * width} bits; save it with 16.")
    content = content[: len(content) // (2 * channels) * 2 * channels]
    return np.frombuffer(content, "<i2").reshape(-1, channels).mean(1) / 2**15, rate


def resample(sound: np.ndarray[Any, Any], rate: int, wanted: int) -> np.ndarray[Any, Any]:
    """Return a sound with another number of samples a second, without the frequencies that these cannot hold."""
    kept = min(1.0, wanted / rate)  # of the frequencies
    reach = math.ceil(ZERO_CROSSINGS / kept)  # old samples on each side of a new one
    places = np.arange(-(-len(sound) * wanted // rate), dtype=np.int64) * rate
    nearest, rest = places // wanted, places % wanted / wanted
    padded = np.pad(sound, reach)
    values, weights = np.zeros(len(places)), np.zeros(len(places))
    for step in range(1 - reach, reach + 1):
        apart = (step - rest) * kept
        window = np.cos(np.pi / 2 * np.clip(apart / ZERO_CROSSINGS, -1, 1)) ** 2
        weight = np.sinc(apart) * window
        values += weight * padded[nearest + step + reach]
        weights += weight
    return values / weights


def prepare_sound(path: Path, how: dict[str, Any], shape: list[int | str]) -> np.ndarray[Any, Any]:
    """Return a .wav of 16 bits as a batch of one sample, as the manifest says."""
    samples, rate = read_sound(path)
    if rate != how["sample_rate"]:
        samples = resample(samples, rate, how["sample_rate"])
    length = how["samples"]
    if length is not None:
        before = max(0, length - len(samples)) // 2 if how["align"] == "middle" else 0
        start = max(0, len(samples) - length) // 2 if how["align"] == "middle" else 0
        samples = samples[start : start + length]
        samples = np.pad(samples, (before, length - len(samples) - before))
    values: np.ndarray[Any, Any] = samples * how["peak"]
    return values.reshape([1] * (len(shape) - 1) + [-1])


def make_input(path: Path, tensor: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return a file as the model's input."""
    how = tensor["preprocessing"]
    if how is None:
        raise SystemExit(f"manifest.json has no preprocessing for '{tensor['name']}', so no file can be its input.")
    values = prepare_image(path, how) if how["kind"] == "image" else prepare_sound(path, how, tensor["shape"])
    if np.issubdtype(tensor["dtype"], np.integer):
        values = np.rint(values)
    return values.astype(tensor["dtype"])


def make_chunks(path: Path, tensor: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Return a file as the inputs of a model with states: a sound in chunks, the last one filled with zeros."""
    how = tensor["preprocessing"]
    if how is None or how["kind"] == "image":
        return [make_input(path, tensor)]
    length = how["samples"]
    if length is None:
        raise SystemExit(
            f"manifest.json has no chunk length for '{tensor['name']}' (samples is null): "
            "set it in the task, and build again."
        )
    sound = make_input(path, {**tensor, "preprocessing": {**how, "samples": None}})
    count = max(1, math.ceil(sound.shape[-1] / length))
    missing = count * length - sound.shape[-1]
    return np.split(np.pad(sound, [(0, 0)] * (sound.ndim - 1) + [(0, missing)]), count, axis=-1)


def first_states(states: list[dict[str, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the states before the first chunk, by name: zeros, for a batch of one if any batch goes."""
    values = {}
    for state in states:
        shape = [1 if size == "batch" else size for size in state["shape"]]
        if not state["begins_with_zeros"]:
            raise SystemExit(
                f"The state '{state['name']}' does not begin with zeros: give its first value to session.run yourself."
            )
        if not all(isinstance(size, int) for size in shape):
            raise SystemExit(
                f"The state '{state['name']}' has no fixed size: give its first value to session.run yourself."
            )
        values[state["name"]] = np.zeros(shape, state["dtype"])
    return values


def read_array(entry: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return one golden array."""
    dtype = np.dtype(entry["dtype"]).newbyteorder("<")
    return np.fromfile(BUNDLE / entry["file"], dtype).reshape(entry["shape"])


def difference(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], *, mean: bool = False) -> float:
    """Return the largest absolute difference, or the mean one; infinite if shapes differ or a value is not a number."""
    if found.shape != expected.shape:
        return float("inf")
    apart = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    apart = np.where(found == expected, 0.0, apart)  # equal infinities too
    value = float((np.mean if mean else np.max)(apart)) if apart.size else 0.0
    return value if value == value else float("inf")


def find_mistakes(session: Any, manifest: dict[str, Any]) -> list[str]:
    """Compare preprocessing, outputs and answers with those of the build; return what is wrong."""
    mistakes = []
    tensors = {tensor["name"]: tensor for tensor in manifest["inputs"]}
    inputs = {}
    for entry in manifest["golden"]:
        if entry["role"] == "output":
            continue
        expected = read_array(entry)
        if entry["role"] == "input":
            inputs[entry["name"]] = expected
        if entry["raw"]:
            files = [make_input(BUNDLE / name, tensors[entry["name"]]) for name in entry["raw"]]
            apart = difference(np.concatenate(files), expected, mean=entry["role"] == "resized")
            if not apart <= entry["tolerance"]:
                what = "resizing" if entry["role"] == "resized" else "preprocessing"
                mistakes.append(
                    f"{what} of '{entry['name']}' is off by {apart:.3g}; {entry['tolerance']:.3g} is allowed"
                )
    names = [tensor["name"] for tensor in manifest["outputs"]]
    outputs = dict(zip(names, session.run(names, inputs)))  # noqa: B905 - also for old versions of Python
    for entry in manifest["golden"]:
        if entry["role"] == "output":
            apart, allowed = difference(outputs[entry["name"]], read_array(entry)), entry["tolerance"]
            if entry["different_ratio"]:  # whole numbers: a share of them may differ
                found, expected = outputs[entry["name"]], read_array(entry)
                apart = float(np.mean(found != expected)) if found.shape == expected.shape else 1.0
                allowed = entry["different_ratio"]
            if not apart <= allowed:
                mistakes.append(f"output '{entry['name']}' is off by {apart:.3g}; {allowed:.3g} is allowed")
    return [*mistakes, *find_wrong_classes(manifest, outputs), *find_wrong_boxes(manifest, outputs)]


def read_boxes(manifest: dict[str, Any], outputs: dict[str, Any], sample: int = 0) -> list[dict[str, Any]]:
    """Return the boxes of a sample, the highest score first; corners are in pixels of the model's input."""
    maps, labels, boxes = manifest["boxes"], manifest["labels"], list[dict[str, Any]]()
    heatmap, sides = (outputs[maps[name]][sample].astype(np.float64) for name in ("heatmap", "sides"))
    height, width = heatmap.shape[1:]
    scores = 1 / (1 + np.exp(-np.clip(heatmap, -60, 60)))
    is_peak = scores >= maps["min_score"]
    padded = np.pad(heatmap, [(0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    for number in range(9):  # of equal neighbours, the first counts
        row, column = divmod(number, 3)
        neighbour = padded[:, row : row + height, column : column + width]
        is_peak &= heatmap > neighbour if number < 4 else heatmap >= neighbour
    reach = maps["stride"] * np.exp(np.clip(sides, *maps["log_sides"]))
    for index, row, column in np.argwhere(is_peak).tolist():
        label = labels[index] if index < len(labels) else str(index)
        middle = (np.array([column, row, column, row]) + 0.5) * maps["stride"]
        corners = middle + reach[:, row, column] * (-1, -1, 1, 1)
        boxes.append({"label": label, "score": float(scores[index, row, column]), "corners": corners.tolist()})
    return sorted(boxes, key=lambda box: -box["score"])[: maps["max_boxes"]]


def find_wrong_classes(manifest: dict[str, Any], outputs: dict[str, Any]) -> Iterator[str]:
    """Compare the classes of the golden inputs."""
    for answer in manifest["answers"]:
        if answer["box"] is not None:
            continue
        index = int(np.argmax(outputs[answer["output"]][answer["sample"]]))
        label = manifest["labels"][index] if answer["label"] is not None else None
        if (index, label) != (answer["class_index"], answer["label"]):
            yield f"sample {answer['sample']} is '{answer['label'] or answer['class_index']}', not '{label or index}'"


def find_wrong_boxes(manifest: dict[str, Any], outputs: dict[str, Any]) -> Iterator[str]:
    """Compare the boxes of the golden inputs: certain ones have to be found, and no others than the answers."""
    answers = [one | one["box"] for one in manifest["answers"] if one["box"] is not None]
    for sample in sorted({one["sample"] for one in answers}):
        found = read_boxes(manifest, outputs, sample)
        right = [one | {"label": one["label"] or str(one["class_index"])} for one in answers if one["sample"] == sample]
        for one in right:
            if one["is_certain"] and not any(is_same_box(one, box) for box in found):
                yield f"sample {sample} has no '{one['label']}' at {place_of(one)}"
        for box in found:
            if not any(is_same_box(one, box) for one in right):
                yield f"sample {sample} has a '{box['label']}' at {place_of(box)} that the build has not found"


def is_same_box(right: dict[str, Any], box: dict[str, Any]) -> bool:
    """Tell whether a box is that of an answer, within its tolerances."""
    apart = np.abs(np.subtract(right["corners"], box["corners"])).max()
    is_near = apart <= right["tolerance"] and abs(right["score"] - box["score"]) <= right["score_tolerance"]
    return bool(is_near and right["label"] == box["label"])


def place_of(box: dict[str, Any]) -> str:
    """Return left, top, right and bottom as text."""
    return " ".join(f"{corner:.1f}" for corner in box["corners"])


def answer(session: Any, manifest: dict[str, Any], path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the outputs for a file; of a model with states, those after the last chunk."""
    states = [tensor for tensor in manifest["inputs"] if tensor["next_value"] is not None]
    others = [tensor for tensor in manifest["inputs"] if tensor["next_value"] is None]
    if len(others) != 1:
        raise SystemExit("The model takes several inputs: make them as manifest.json says, and call session.run.")
    (tensor,) = others
    feeds, outputs = first_states(states), {}
    names = [output["name"] for output in manifest["outputs"]]
    batch = tensor["shape"][0] if isinstance(tensor["shape"][0], int) else 1
    for values in make_chunks(path, tensor) if states else [make_input(path, tensor)]:
        feeds[tensor["name"]] = np.repeat(values, batch, axis=0)
        outputs = dict(zip(names, session.run(names, feeds)))  # noqa: B905
        feeds.update({state["name"]: outputs[state["next_value"]] for state in states})
    return outputs


def class_map(output: np.ndarray[Any, Any], class_axis: int) -> np.ndarray[Any, Any]:
    """Return the best class of each place of the first sample, such as each pixel."""
    best: np.ndarray[Any, Any] = np.argmax(output, axis=class_axis)[0]
    return best


def has_class_map(tensor: dict[str, Any], output: np.ndarray[Any, Any]) -> bool:
    """Tell whether an output has scores for the classes of each place."""
    return tensor["class_axis"] is not None and output.ndim > 2


def print_answers(manifest: dict[str, Any], outputs: dict[str, np.ndarray[Any, Any]]) -> None:
    """Print the best classes of scores, the shares of the classes of maps, and the form of other outputs."""
    labels = manifest["labels"]
    left_out = [tensor["next_value"] for tensor in manifest["inputs"]]  # states, and maps that give boxes
    left_out += [manifest["boxes"][name] for name in ("heatmap", "sides")] if manifest["boxes"] else []
    for tensor in manifest["outputs"]:
        if tensor["name"] in left_out:
            continue
        output = outputs[tensor["name"]]
        if has_class_map(tensor, output):
            found = class_map(output, tensor["class_axis"])
            print(f"{tensor['name']}: class map of {'x'.join(map(str, found.shape))}")
            counts = np.bincount(found.ravel())
            for index in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]:
                print(f"{labels[index] if labels else index}: {100 * counts[index] / found.size:.1f} %")
            continue
        if tensor["class_axis"] in (1, -1) and output.ndim == 2:
            for index in np.argsort(-output[0])[:SHOWN_CLASSES]:
                print(f"{labels[index] if labels else index}: {output[0, index]:.4g}")
            continue
        values = f", {output.min():.4g} to {output.max():.4g}" if output.size else ""
        print(f"{tensor['name']}: {output.dtype} {list(output.shape)}{values}")


def boxes_of_image(image: Any, manifest: dict[str, Any], outputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the boxes of an image, with corners in its pixels and inside of it."""
    (how,) = (tensor["preprocessing"] for tensor in manifest["inputs"] if tensor["next_value"] is None)
    wide, tall, left, top = fit_of(image.size, how)
    boxes = read_boxes(manifest, outputs)
    for box in boxes:
        resized = np.reshape(box["corners"], (2, 2)) + np.array([left, top])
        box["corners"] = np.clip(resized * image.size / (wide, tall), 0, image.size).ravel().tolist()
    return boxes


def show_boxes(image: Any, manifest: dict[str, Any], outputs: dict[str, Any]) -> Any:
    """Print the boxes of an image, and return the image with its boxes."""
    from PIL import ImageDraw

    drawn, boxes = image.convert("RGB"), boxes_of_image(image, manifest, outputs)
    pen = ImageDraw.Draw(drawn)
    for box in boxes:
        print(f"{box['label']}: {box['score']:.3f} at {place_of(box)}")
        text, start = f" {box['label']} {box['score']:.2f} ", box["corners"][:2]
        pen.rectangle(box["corners"], outline="red", width=max(2, max(image.size) // 300))
        pen.rectangle(pen.textbbox(start, text), fill="red")
        pen.text(start, text, fill="white")
    if not boxes:
        print(f"no boxes with a score of at least {manifest['boxes']['min_score']:g}")
    return drawn


def draw_map(manifest: dict[str, Any], outputs: dict[str, np.ndarray[Any, Any]]) -> Any:
    """Return the class map of an image as a grey image, of which each pixel is the number of a class."""
    from PIL import Image

    tensors = [tensor for tensor in manifest["outputs"] if has_class_map(tensor, outputs[tensor["name"]])]
    maps = [class_map(outputs[tensor["name"]], tensor["class_axis"]) for tensor in tensors]
    maps = [one for one in maps if one.ndim == 2]
    if not maps:
        raise SystemExit("The model gives no class map of an image, so there is none to write.")
    if maps[0].max(initial=0) > 255:
        raise SystemExit("The class map has classes above 255, which a grey image of 8 bits cannot hold.")
    return Image.fromarray(maps[0].astype(np.uint8))


def main() -> int:
    """Check this machine, or answer for a file."""
    manifest = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(BUNDLE / "model.onnx"), providers=["CPUExecutionProvider"])
    mistakes = find_mistakes(session, manifest) if manifest["golden"] else []
    for mistake in mistakes:
        print(f"self-test: {mistake}", file=sys.stderr)
    if mistakes:
        return 1
    print("self-test: passed" if manifest["golden"] else "self-test: this bundle has no golden files")
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        found = answer(session, manifest, path)
        print_answers(manifest, found)
        picture = show_boxes(open_image(path), manifest, found) if manifest["boxes"] else None
        if len(sys.argv) > 2:
            (picture or draw_map(manifest, found)).save(sys.argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())

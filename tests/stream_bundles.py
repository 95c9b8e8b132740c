"""The bundle of a small streaming model, whose answer for a sound depends on its first chunk and on its last one."""

import json
import wave
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.helper
import onnxruntime
from app_bundles import TONES
from builders import a_budget, a_choice
from tiny_bundles import AN_ORIGIN, GENEROUS, a_golden

from edgeopt.bundle.golden import find_answers
from edgeopt.bundle.raw_inputs import make_raw
from edgeopt.bundle.write import write_bundle
from edgeopt.records.preprocessing import SoundPreprocessing

RATE, CHUNK = 8000, 800
CHUNKS = SoundPreprocessing(sample_rate=RATE, samples=CHUNK, align="middle")
FIRST_AND_LAST = tuple(f"{first} {last}" for first in TONES for last in TONES)
"""The classes: the tone of the first chunk, and that of the last one."""
_STATE = [1, "batch", 2]
"""As of a recurrent layer: the batch is not the first dimension."""
_PARTIAL = 300
"""Samples of the last chunk of a recording."""
_BETWEEN = 3
"""Chunks between the first and the last one."""


def stream_model(path: Path) -> Path:
    """Save a model that hears which tone a stream began with, and which one it ends with.

    ``first`` is the energy of each tone in the first chunk, ``heard`` counts chunks in its second value: the two have
    one shape, and swapped they make the first tone the high one. Only the first half of a chunk is heard, so that zeros
    have to come after the last samples. Inputs and outputs are in an order of their own.
    """
    places = np.arange(CHUNK) / RATE
    waves = [turn(2 * np.pi * tone * places) for tone in TONES.values() for turn in (np.cos, np.sin)]
    pairs = np.eye(4).reshape(2, 2, 4)
    weights = {
        "waves": (np.stack(waves, axis=1) * (places < CHUNK / 2 / RATE)[:, None]).astype(np.float32) / 100,
        "sum": np.kron(np.eye(2), np.ones((2, 1))).astype(np.float32),
        "one": np.array([[0, 1]], np.float32),
        "none": np.zeros(1, np.float32),
        "layer": np.array([0]),
        "of first": pairs.sum(1).astype(np.float32),
        "of last": pairs.sum(0).astype(np.float32),
    }
    make = onnx.helper.make_node
    nodes = [
        make("MatMul", ["chunk", "waves"], ["c"]),
        make("Mul", ["c", "c"], ["s"]),
        make("MatMul", ["s", "sum"], ["energy"]),
        make("Unsqueeze", ["energy", "layer"], ["now"]),
        make("ReduceMax", ["heard"], ["most"], axes=[2]),
        make("Greater", ["most", "none"], ["goes on"]),
        make("Where", ["goes on", "first", "now"], ["next_first"]),
        make("Add", ["heard", "one"], ["next_heard"]),
        make("Squeeze", ["next_first", "layer"], ["began"]),
        make("MatMul", ["began", "of first"], ["a"]),
        make("MatMul", ["energy", "of last"], ["b"]),
        make("Add", ["a", "b"], ["scores"]),
    ]
    shapes = {
        "first": _STATE, "chunk": ["batch", CHUNK], "heard": _STATE,
        "next_heard": _STATE, "scores": ["batch", 4], "next_first": _STATE,
    }  # fmt: skip
    values = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "g", values[:3], values[3:], tensors)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def write_stream_bundle(
    folder: Path, *, how: SoundPreprocessing = CHUNKS, zero_states=("first", "heard"), generous: bool = False
) -> Path:
    """Write the bundle of the streaming model; ``how`` is what its manifest says of a chunk.

    With ``generous``, this machine keeps its limits.
    """
    model = stream_model(folder / "m.onnx")
    times = np.arange(CHUNK) / RATE
    tones = np.stack([np.sin(2 * np.pi * tone * times) * (0.3 + times) for tone in (*TONES.values(), 420, 1100)])
    raw = make_raw("chunk", tones.astype(np.float32), how)
    states = {name: np.zeros((1, len(tones), 2), np.float32) for name in ("first", "heard")}
    inputs = {"first": states["first"], "chunk": raw.values, "heard": states["heard"]}
    names = ("next_heard", "scores", "next_first")
    outputs = dict(zip(names, onnxruntime.InferenceSession(str(model)).run(names, inputs), strict=True))
    tolerance = 1e-3 * float(np.abs(outputs["scores"]).max())
    golden = a_golden(
        inputs, outputs, raw={"chunk": raw},
        answers=find_answers("scores", outputs["scores"], 1, FIRST_AND_LAST, tolerance),
    )  # fmt: skip
    origin = msgspec.structs.replace(
        AN_ORIGIN, labels=FIRST_AND_LAST, preprocessing=how.text, input_preprocessing={"chunk": how},
        class_axes={"scores": 1}, states={"first": "next_first", "heard": "next_heard"}, zero_states=zero_states,
    )  # fmt: skip
    choice = a_choice(budget=a_budget(**GENEROUS)) if generous else a_choice()
    write_bundle(folder / "out", choice, model=model, golden=golden, origin=origin)
    return folder / "out"


def write_recording(path: Path, first: str, last: str, rate: int = RATE) -> Path:
    """Write a stereo ``.wav``: a chunk of one tone, others of the tone that is not the last, and a part of one."""
    (other,) = (tone for name, tone in TONES.items() if name != last)
    starts = np.cumsum([CHUNK, _BETWEEN * CHUNK, _PARTIAL]) / RATE
    times = np.arange(int(starts[-1] * rate)) / rate
    tone = np.select([times < starts[0], times < starts[1]], [TONES[first], other], TONES[last])
    sound = 0.3 * np.sin(2 * np.pi * tone * times)
    samples = np.rint(np.stack([sound * 1.2, sound * 0.8], axis=1) * 2**15).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def change_manifest(bundle, change):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def no_length(manifest):
    manifest["inputs"][1]["preprocessing"]["samples"] = None


def any_size(manifest):
    manifest["inputs"][0]["shape"] = [1, "batch", "past"]


def no_zeros(manifest):
    manifest["inputs"][2]["begins_with_zeros"] = False


def no_state(manifest):
    manifest["inputs"][2].update(next_value=None, begins_with_zeros=None)


REFUSED = {
    no_length: "manifest.json has no chunk length for 'chunk' (samples is null): set it in the task, and build again.",
    any_size: "The state 'first' has no fixed size: give its first value to session.run yourself.",
    no_zeros: "The state 'heard' does not begin with zeros: give its first value to session.run yourself.",
    no_state: "The model takes several inputs: make them as manifest.json says, and call session.run.",
}
"""Changes of a manifest that a sample cannot run, and what it says."""

"""Time short-time Fourier transforms as ONNX Runtime's ``STFT`` and as the convolution that edgeopt writes.

    python benchmarks/transforms.py [--model FILE.onnx] [--json benchmarks/results/transforms.json]

One second of sound, one thread, both files in turns. The errors are those to the transform in float64, relative to its
largest value. ``--model`` times a file with such a transform in the same way, before and after.

Figures: for each size of a frame ``speed_ratio`` (median time of ``STFT`` over that of the convolution, where it is
written; 1 where ``STFT`` stays), ``error`` and ``error_of_stft``.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.fourier import write_transforms_as_convolutions

FRAMES = ((200, 80, 8000), (256, 80, 8000), (320, 160, 16000), (400, 160, 16000), (480, 160, 16000),
          (512, 160, 16000), (1024, 256, 22050), (1200, 300, 24000))  # fmt: skip
"""Samples of a frame, of a hop, and of a second of sound."""
TURNS = 100
Array = NDArray[np.float32]


def make_transform(size: int, hop: int, samples: int) -> onnx.ModelProto:
    """Return a model of one transform."""
    constants = {"hop": np.array(hop), "window": np.hanning(size).astype(np.float32), "length": np.array(size)}
    graph = helper.make_graph(
        [helper.make_node("STFT", ["signal", *constants], ["out"])],
        "transform",
        [helper.make_tensor_value_info("signal", TensorProto.FLOAT, [1, samples, 1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, "frames", "bins", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def time_in_turns(models: tuple[onnx.ModelProto, onnx.ModelProto]) -> tuple[list[list[float]], list[Array]]:
    """Return the seconds of single runs of two models, and their outputs, on the same made-up sound."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for model in models
    ]
    given = sessions[0].get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    feeds = {given.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    outputs: list[Array] = [session.run(None, feeds)[0] for session in sessions]
    samples: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for session, seconds in zip(sessions, samples, strict=True):
            start = time.perf_counter()
            session.run(None, feeds)
            seconds.append(time.perf_counter() - start)
    return samples, outputs


def compare(model: onnx.ModelProto) -> tuple[dict[str, Any], list[Array]]:
    """Return the row of a model before and after, and both outputs."""
    changed = copy.deepcopy(model)
    count = write_transforms_as_convolutions(changed)
    seconds, outputs = time_in_turns((model, changed))
    row = {
        "written": count, "bytes_added": changed.ByteSize() - model.ByteSize(),
        "speed_ratio": median(seconds[0]) / median(seconds[1]) if count else 1.0, "seconds": seconds,
    }  # fmt: skip
    return row, outputs


def run_frames(size: int, hop: int, samples: int) -> dict[str, Any]:
    """Return the row of one size of a frame."""
    row, (stft, found) = compare(make_transform(size, hop, samples))
    signal = np.random.default_rng(0).standard_normal((1, samples, 1)).astype(np.float32).reshape(-1)
    frames = np.lib.stride_tricks.sliding_window_view(signal.astype(np.float64), size)[::hop]
    exact = np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=-1)
    expected = np.stack([exact.real, exact.imag], axis=-1)[None]
    errors = [float(np.abs(values - expected).max() / np.abs(expected).max()) for values in (found, stft)]
    return {"size": size, "hop": hop, **row, "error": errors[0], "error_of_stft": errors[1]}


@click.command()
@click.option("--model", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Time this file too.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write figures and raw samples.")
def main(model: Path | None, out: Path | None) -> None:
    """Time every size of a frame, and a file if one is given."""
    rows = [run_frames(*frame) for frame in FRAMES]
    result: dict[str, Any] = {
        "figures": {
            str(row["size"]): {key: row[key] for key in ("speed_ratio", "error", "error_of_stft")} for row in rows
        },
        "rows": rows,
        "environment": {"platform": platform.platform(), "onnxruntime": onnxruntime.__version__},
        "command": "python benchmarks/transforms.py",
    }
    if model is not None:
        row, (before, after) = compare(onnx.load(model))
        result["model"] = {"file": model.name, **row, "largest_difference": float(np.abs(before - after).max())}
        result["command"] += " --model model.onnx"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result["figures"], indent=1))
    if model is not None:
        print({key: value for key, value in result["model"].items() if key != "seconds"})


if __name__ == "__main__":
    main()

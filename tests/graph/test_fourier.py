"""Short-time Fourier transforms become convolutions that compute the same, with weights that loading computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeopt.export.to_onnx import export
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.fourier import write_transforms_as_convolutions
from edgeopt.records.recipe import Compact
from edgeopt.tasks.networks.log_mel import LogMel

SAMPLES, HOP = 4000, 50
TOLERANCE = 2e-6  # of the largest value: float32 in another order


def a_transform(
    size: int,
    *,
    window: bool = True,
    length: bool = True,
    rank: int = 3,
    onesided: int | None = 1,
    dtype: type = np.float32,
    is_constant: bool = True,
    window_size: int | None = None,
) -> onnx.ModelProto:
    """A model of one ``STFT`` of two signals."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = [2, SAMPLES, 1][:rank]
    inputs = [helper.make_tensor_value_info("signal", element, shape)]
    constants = {"hop": np.array(HOP)}
    if window:
        constants["window"] = np.hanning(window_size or size).astype(dtype)
    if length:
        constants["length"] = np.array(size)
    if not is_constant:
        inputs.append(helper.make_tensor_value_info("hop", TensorProto.INT64, []))
        constants.pop("hop")
    attributes = {} if onesided is None else {"onesided": onesided}
    names = ["signal", "hop", "window" if window else "", "length" if length else ""]
    node = helper.make_node("STFT", names if length else names[:3], ["out"], **attributes)
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("out", element, [2, "frames", "bins", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run_model(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def transform_exactly(signal: np.ndarray, size: int, window: np.ndarray | None) -> np.ndarray:
    """Return the transform ``(signals, frames, bins, 2)`` in float64."""
    frames = np.lib.stride_tricks.sliding_window_view(signal.reshape(len(signal), -1).astype(np.float64), size, axis=1)
    found = np.fft.rfft(frames[:, ::HOP] * (1 if window is None else window), axis=-1)
    return np.stack([found.real, found.imag], axis=-1)


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    "changes",
    [{}, {"window": False}, {"length": False}, {"rank": 2}, {"onesided": None}],
    ids=["all", "no-window", "no-length", "without-a-last-dimension", "default"],
)
@pytest.mark.parametrize("size", [256, 400, 33, 1000])
def test_a_transform_becomes_a_convolution_that_computes_the_same(size, changes):
    model = a_transform(size, **changes)
    signal = np.random.default_rng(0).standard_normal((2, SAMPLES, 1)[: changes.get("rank", 3)]).astype(np.float32)
    window = next((numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "window"), None)
    expected = transform_exactly(signal, size, window)
    error_before = np.abs(run_model(model, signal=signal) - expected).max()
    assert write_transforms_as_convolutions(model) == 1
    assert operators(model) >= {"Conv"}
    assert "STFT" not in operators(model)
    onnx.checker.check_model(model, full_check=True)
    found = run_model(model, signal=signal)
    assert found.shape == expected.shape
    error = np.abs(found - expected).max()
    assert error <= TOLERANCE * np.abs(expected).max()
    assert error <= 4 * error_before  # with sizes that are no powers of two, it is 10 to 100 times smaller
    assert write_transforms_as_convolutions(model) == 0


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (1024, {}),  # the fast transform is faster
        (2050, {}),
        (256, {"onesided": 0}),
        (256, {"dtype": np.float64}),
        (256, {"is_constant": False}),
        (256, {"window_size": 1}),
    ],
    ids=["power-of-two", "large", "both-sides", "double", "hop-is-an-input", "short-window"],
)
def test_other_transforms_stay(size, changes):
    model = a_transform(size, **changes)
    before = model.SerializeToString()
    assert write_transforms_as_convolutions(model) == 0
    assert model.SerializeToString() == before


def test_the_weights_are_computed_when_the_file_is_loaded(tmp_path):
    model = a_transform(400)
    size_before = model.ByteSize()
    write_transforms_as_convolutions(model)
    assert model.ByteSize() < size_before + 2000  # the weights would be 642 kB
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert operators(onnx.load(tmp_path / "loaded.onnx")) == {"Reshape", "Conv", "Transpose"}


@pytest.mark.parametrize("convolves", [True, False])
def test_a_log_mel_front_end_is_finished_either_way(tmp_path, convolves):
    front = LogMel(16000, size=400, hop=160).eval()
    sound = torch.randn(2, 8000)
    export(
        front, (sound,), tmp_path / "m.onnx", input_names=("sound",), output_names=("bands",), max_opset=20, max_ir=9,
        exporter="dynamo",
    )  # fmt: skip
    (result,) = apply_steps(
        (Compact(convolves_transforms=convolves),), tmp_path / "m.onnx", tmp_path / "done.onnx",
        calibration=None, max_opset=20, max_ir=9,
    )  # fmt: skip
    made = onnx.load(tmp_path / "done.onnx")
    assert ("STFT" in operators(made)) is not convolves
    assert any("written as convolutions" in note for note in result.notes) is convolves
    found = run_model(made, sound=sound.numpy())
    assert np.abs(found - front(sound).numpy()).max() < 1e-3

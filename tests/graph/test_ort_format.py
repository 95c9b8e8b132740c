"""Files in ONNX Runtime's own format compute the same, on the processors they are for, and list their operators."""

import platform

import msgspec
import numpy as np
import pytest
from onnx_running import a_network, run, some_images, write
from onnxruntime.tools.reduced_build_config_parser import parse_config
from tiny_models import a_run_target

from edgeopt.bench.outputs import run_arrays, write_batches
from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps, convert_to_ort_format
from edgeopt.records.recipe import Compact, FuseQLinear, PackWeights, Quantize, Simplify

PLAIN = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=64)
NCHWC = "com.microsoft.nchwc"
SUM_TOLERANCE = 1e-5  # of logits of about 1: fused kernels add in another order
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network in float32, with int8 activations in QDQ, and with weights in 4 bits."""
    folder = tmp_path_factory.mktemp("ort")
    source = write(a_network(stem=32), folder / "source.onnx")
    write_batches(folder / "calibration.npz", [{"image": some_images(16, seed=seed)} for seed in range(4)])
    int8, four_bits = (
        msgspec.structs.replace(PLAIN, **change) for change in ({"activations": "int8"}, {"weight_bits": 4})
    )
    steps = {"float": (), "qdq": (int8,), "packed": (four_bits, FuseQLinear(), PackWeights())}
    for name, between in steps.items():
        apply_steps(
            (Simplify(), *between, Compact()), source, folder / f"{name}.onnx",
            calibration=folder / "calibration.npz", max_opset=20, max_ir=9,
        )  # fmt: skip
    return folder


def convert(source, folder, **settings):
    model, operators = folder / "model.ort", folder / "required_operators.config"
    settings = {"level": "all", "platform": "any", "folds": True} | settings
    convert_to_ort_format(source, model, operators, **settings)
    return model, operators


def run_ort(model):
    (outputs,) = run_arrays(model, [{"image": some_images()}], a_run_target(), "test")
    return next(iter(outputs.values()))


@pytest.mark.parametrize("name", ["float", "qdq", "packed"])
@pytest.mark.parametrize("settings", [{}, {"platform": "arm", "level": "extended"}, {"folds": False}])
def test_the_converted_file_computes_the_same_and_lists_its_operators_with_types(files, tmp_path, name, settings):
    model, operators = convert(files / f"{name}.onnx", tmp_path, **settings)
    assert np.abs(run_ort(model) - run(files / f"{name}.onnx", some_images())).max() < SUM_TOLERANCE
    required, types = parse_config(operators, enable_type_reduction=True)
    assert NCHWC not in required
    assert {kind for kinds in required.values() for names in kinds.values() for kind in names} & {"Conv", "QLinearConv"}
    assert types is not None
    text = operators.read_text()
    assert str(tmp_path) not in text
    assert text.startswith("# Operators and types of model.ort")


@pytest.mark.skipif(not IS_X86, reason="only x86 has the blocked layout")
def test_only_a_file_for_this_processor_has_its_layout(files, tmp_path):
    model, operators = convert(files / "float.onnx", tmp_path, platform="amd64")
    assert NCHWC in parse_config(operators)[0]
    assert np.abs(run_ort(model) - run(files / "float.onnx", some_images())).max() < SUM_TOLERANCE


def test_int8_activations_get_integer_kernels_in_a_file_for_arm(files, tmp_path):
    _, operators = convert(files / "qdq.onnx", tmp_path, platform="arm")
    text = operators.read_text()
    assert "QLinearConv" in text
    assert "DequantizeLinear" not in text


def test_weights_of_few_bits_stay_packed_if_constants_are_not_computed(files, tmp_path):
    model, _ = convert(files / "packed.onnx", tmp_path)
    unpacked, folded = model.stat().st_size, run_ort(model)
    model, operators = convert(files / "packed.onnx", tmp_path, folds=False, level="extended")
    assert model.stat().st_size < unpacked
    assert "BitShift" in operators.read_text()
    assert (run_ort(model) == folded).all()


def test_a_file_that_the_runtime_cannot_load_is_one_sentence(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(StepError, match=r"ort-format: its process failed: .*broken\.onnx failed"):
        convert(tmp_path / "broken.onnx", tmp_path)

"""Saturation on x86 without VNNI: the bound, and an emulation of vpmaddubsw on a file's own activations."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx_running import a_network, run, some_images, write
from tiny_models import a_run_target

from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.model import read_initializers
from edgeopt.graph.quantization.saturation import MAX_INT16_SUM, compute_max_pair_sum, find_saturating_nodes
from edgeopt.records.recipe import Compact, FuseQLinear, Quantize, QuantizeDynamic, Simplify

SEVEN_BITS = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=64)
EIGHT_BITS = msgspec.structs.replace(SEVEN_BITS, reduce_range=False)


def extract_patches(values, weight, pads, strides, zero):
    """Return the inputs of each output position, (positions, input channels * kernel), padded with the zero point."""
    padded = np.pad(values, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=zero)
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]
    return np.moveaxis(windows, 1, 3).reshape(-1, int(np.prod(weight.shape[1:])))


def multiply_and_add_pairs(left, right):
    """Return (exact, saturated) dot products; vpmaddubsw adds neighbouring products in 16 bits."""
    if left.shape[1] % 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 0), (0, 1)))
    products = left.astype(np.int32)[:, None] * right.astype(np.int32)[None]
    pairs = products[..., 0::2] + products[..., 1::2]
    return pairs.sum(-1), np.clip(pairs, -MAX_INT16_SUM - 1, MAX_INT16_SUM).sum(-1)


def emulate(path, tmp_path):
    """Run a file on some images; yield the exact and the saturated integer sums of each QLinearConv."""
    from builders import a_profile

    model = onnx.load(path)
    convolutions = [node for node in model.graph.node if node.op_type == "QLinearConv"]
    names = {node.input[0] for node in convolutions}
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    onnx.save(model, tmp_path / "open.onnx")
    write_batches(tmp_path / "in.npz", [{"image": some_images(4, seed=9)}])
    run_model(tmp_path / "open.onnx", tmp_path / "in.npz", tmp_path / "out.npz", a_run_target(a_profile()))
    (values,) = read_batches(tmp_path / "out.npz")
    constants = read_initializers(model.graph)
    for node in convolutions:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight, zero = constants[node.input[3]], int(constants[node.input[2]])
        inputs = extract_patches(
            values[node.input[0]], weight, attributes.get("pads", [0] * 4), attributes.get("strides", [1] * 2), zero
        )
        yield multiply_and_add_pairs(inputs, weight.reshape(len(weight), -1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portable")
    source = write(a_network(), folder / "source.onnx")
    write_batches(folder / "calibration.npz", [{"image": some_images(64)}])

    def make(step):
        steps = (Simplify(), step, FuseQLinear(), Compact()) if isinstance(step, Quantize) else (Simplify(), step)
        target = folder / f"{len(list(folder.iterdir()))}.onnx"
        return apply_steps(steps, source, target, calibration=folder / "calibration.npz", max_opset=20, max_ir=9)[
            -1
        ].path

    return make


def test_seven_bit_weights_cannot_saturate_with_any_activations(made, tmp_path):
    path = made(SEVEN_BITS)
    assert find_saturating_nodes(onnx.load(path)) == ()
    results = list(emulate(path, tmp_path))
    assert len(results) == 6
    assert all((exact == saturated).all() for exact, saturated in results)


def test_eight_bit_weights_saturate_on_real_activations_and_are_found(made, tmp_path):
    path = made(EIGHT_BITS)
    assert len(find_saturating_nodes(onnx.load(path))) >= 6
    assert any((exact != saturated).any() for exact, saturated in emulate(path, tmp_path))


def test_pairs_that_the_runtime_fuses_count_as_integer_operators(made, tmp_path):
    source = write(a_network(), tmp_path / "source.onnx")
    write_batches(tmp_path / "calibration.npz", [{"image": some_images(64)}])
    for step, expected in ((SEVEN_BITS, False), (EIGHT_BITS, True)):
        results = apply_steps(
            (Simplify(), step), source, tmp_path / "pairs.onnx",
            calibration=tmp_path / "calibration.npz", max_opset=20, max_ir=9,
        )  # fmt: skip
        assert bool(find_saturating_nodes(onnx.load(results[-1].path))) == expected


def test_dynamic_int8_cannot_saturate_either(made):
    path = made(QuantizeDynamic(reduce_range=True))
    assert find_saturating_nodes(onnx.load(path)) == ()
    assert run(path, some_images()).shape == (16, 5)


def test_the_bound_takes_the_two_worst_weights_of_one_output_channel():
    weight = np.array([[100, 1, 27], [-128, 127, -2]], np.int8)
    assert compute_max_pair_sum(weight, 0) == 255 * 130
    assert compute_max_pair_sum(weight, 1) == 255 * 128

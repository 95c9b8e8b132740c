"""The contract of every graph step, and the promises of individual steps."""

import hashlib
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_running import a_network, run, runtime_operators, signal_to_noise_db, some_images, write

from edgeopt.bench.outputs import write_batches
from edgeopt.errors import StepError
from edgeopt.export.parity import compare_arrays
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.denormals import flush_denormals
from edgeopt.graph.facts import read_facts
from edgeopt.graph.steps import STEPS, name_of
from edgeopt.records.recipe import (
    Compact,
    DropUnseenRows,
    Float16,
    FlushDenormals,
    FuseQLinear,
    PackWeights,
    Quantize,
    QuantizeDynamic,
    QuantizeWeights,
    Simplify,
    StoreWeights,
)

INT8 = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=48)
DYNAMIC = QuantizeDynamic(reduce_range=True)
WEIGHTS = QuantizeWeights(bits=8, block=32)
# ``DropUnseenRows`` has test_unseen_rows.py: this network has no table
EVERY_STEP = (
    Simplify(), FlushDenormals(), INT8, DYNAMIC, WEIGHTS, StoreWeights(), Float16(), FuseQLinear(), PackWeights(),
    Compact(),
)  # fmt: skip
KEEPS_THE_NODES = (Simplify(), FlushDenormals(), FuseQLinear(), PackWeights(), Compact())
REPEATABLE = (Simplify(), FlushDenormals(), FuseQLinear(), PackWeights(), Compact())

FOLDING_TOLERANCE = 1e-5  # folded constants are rounded once more: a few units in the last place of float32
INT8_SIGNAL_TO_NOISE_DB = 20.0  # 26 to 28 here; 11 with 8-bit weights that saturate on a processor without VNNI
FLOAT16_SIGNAL_TO_NOISE_DB = 50.0  # 10 bits of mantissa are 60 dB for one rounding; a network has several


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def source(folder):
    return write(a_network(), folder / "source.onnx")


@pytest.fixture(scope="module")
def dynamo_source(folder):
    return write(a_network(), folder / "dynamo.onnx", exporter="dynamo")


@pytest.fixture(scope="module")
def calibration(folder):
    path = folder / "calibration.npz"
    write_batches(path, [{"image": some_images(16, seed=seed)} for seed in range(4)])
    return path


@pytest.fixture(scope="module")
def made(folder, source, calibration):
    """Apply a list of steps once; return the results."""

    @cache
    def make(*steps):
        target = folder / f"{len(list(folder.iterdir()))}.onnx"
        return apply_steps(steps, source, target, calibration=calibration, max_opset=20, max_ir=9)

    return make


@pytest.fixture(scope="module")
def expected(source):
    return run(source, some_images())


def test_every_step_is_in_the_table_and_in_these_tests():
    assert set(STEPS) == {type(step) for step in (*EVERY_STEP, DropUnseenRows(tables={}))}


@pytest.mark.parametrize("step", EVERY_STEP, ids=name_of)
def test_the_input_file_is_unchanged_and_the_result_is_one_valid_file_that_is_not_newer(step, made, source):
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    (result,) = made(step)
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before
    model = onnx.load(result.path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert (read_facts(result.path).opset, read_facts(result.path).ir_version) == (18, 8)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "logits"]


@pytest.mark.parametrize("step", EVERY_STEP, ids=name_of)
def test_a_step_computes_the_same(step, made, expected):
    found = run(made(step)[0].path, some_images())
    match step:
        case Quantize() | QuantizeDynamic() | QuantizeWeights() | StoreWeights():
            assert signal_to_noise_db(expected, found) > INT8_SIGNAL_TO_NOISE_DB
        case Float16():
            assert signal_to_noise_db(expected, found) > FLOAT16_SIGNAL_TO_NOISE_DB
        case Simplify():
            compare_arrays([expected], [found], stage="simplified", tolerance=FOLDING_TOLERANCE)
        case FlushDenormals() | FuseQLinear() | PackWeights() | Compact():
            assert (found == expected).all()


@pytest.mark.parametrize("step", KEEPS_THE_NODES, ids=name_of)
def test_a_step_adds_no_nodes(step, made, source):
    assert sum(read_facts(made(step)[0].path).operators.values()) <= sum(read_facts(source).operators.values())


@pytest.mark.parametrize("step", REPEATABLE, ids=name_of)
def test_a_step_applied_twice_gives_the_same_file_as_once(step, made):
    once, twice = made(step, step)
    assert once.path.read_bytes() == twice.path.read_bytes()


def test_a_step_gives_the_same_file_each_time(made, folder, source, calibration):
    again = apply_steps((INT8,), source, folder / "again.onnx", calibration=calibration, max_opset=20, max_ir=9)
    assert made(INT8)[0].path.read_bytes() == again[0].path.read_bytes()


def test_compact_does_not_change_a_bit_of_an_int8_file_and_makes_it_much_smaller(made):
    results = made(Simplify(), INT8, Compact())
    full, small = results[1].path, results[2].path
    assert (run(full, some_images()) == run(small, some_images())).all()
    assert small.stat().st_size < 0.8 * full.stat().st_size


def test_fusion_does_not_change_a_bit_of_the_outputs(made):
    paired, fused = made(Simplify(), INT8, Compact()), made(Simplify(), INT8, FuseQLinear(), Compact())
    assert (run(paired[-1].path, some_images()) == run(fused[-1].path, some_images())).all()
    assert runtime_operators(paired[-1].path) == runtime_operators(fused[-1].path)
    operators = read_facts(fused[-1].path).operators
    assert (operators["QuantizeLinear"], operators.get("DequantizeLinear")) == (1, None)
    assert fused[-1].path.stat().st_size < 0.9 * paired[-1].path.stat().st_size
    assert fused[2].notes == ("fuse: 11 nodes written as integer operators",)


def test_int8_activations_fuse_too(made, expected):
    signed = Quantize(activations="int8", per_channel=True, reduce_range=False, calibration="minmax", samples=48)
    paired, fused = made(Simplify(), signed), made(Simplify(), signed, FuseQLinear())
    assert read_facts(fused[-1].path).operators["QLinearConv"] == 6
    found = run(fused[-1].path, some_images())
    assert signal_to_noise_db(expected, found) > INT8_SIGNAL_TO_NOISE_DB
    assert signal_to_noise_db(run(paired[-1].path, some_images()), found) > INT8_SIGNAL_TO_NOISE_DB


def test_a_pair_around_an_operator_without_an_integer_form_stays(tmp_path):
    pair = "".join(
        f"{y}_q = QuantizeLinear({x}, s, z) {y} = DequantizeLinear({y}_q, s, z) " for x, y in (("x", "a"), ("b", "y"))
    )
    first, second = pair.split("y_q", 1)
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x) => (float[n, 4] y) '
        "<float s = {0.1}, uint8 z = {128}> { " + first + "b = Tanh(a) y_q" + second + "}"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "pair.onnx")
    limits = {"calibration": None, "max_opset": 20, "max_ir": 9}
    apply_steps((FuseQLinear(),), tmp_path / "pair.onnx", tmp_path / "out.onnx", **limits)
    assert read_facts(tmp_path / "out.onnx").operators == read_facts(tmp_path / "pair.onnx").operators


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_the_runtime_fuses_every_int8_node(exporter, folder, source, dynamo_source, calibration):
    float_file = dynamo_source if exporter == "dynamo" else source
    target = folder / f"fused-{exporter}.onnx"
    apply_steps((INT8, Compact()), float_file, target, calibration=calibration, max_opset=20, max_ir=9)
    operators = runtime_operators(target)
    assert operators["QLinearConv"] == 6
    assert operators["QLinearAdd"] == 2
    assert operators["QLinearGlobalAveragePool"] == operators["QGemm"] == 1
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (1, 0)  # no rounding of the logits
    assert operators["Conv"] == 1  # the stem reads one channel


def test_a_convolution_that_reads_many_channels_is_quantized_too(folder, calibration, tmp_path):
    wide = write(a_network(channels=4), tmp_path / "wide.onnx", channels=4)
    batches = tmp_path / "batches.npz"
    write_batches(batches, [{"image": some_images(16, 4)}])
    int8 = apply_steps((INT8,), wide, tmp_path / "int8.onnx", calibration=batches, max_opset=20, max_ir=9)
    assert runtime_operators(int8[0].path)["QLinearConv"] == 7
    assert not int8[0].notes


def test_float16_halves_the_size(made, source):
    assert made(Float16(), Compact())[1].path.stat().st_size < 0.6 * source.stat().st_size


def test_dynamos_mean_over_an_image_becomes_a_pool(folder, dynamo_source):
    target = folder / "pool.onnx"
    apply_steps((Simplify(),), dynamo_source, target, calibration=None, max_opset=20, max_ir=9)
    assert read_facts(dynamo_source).operators["ReduceMean"] == 1
    assert read_facts(target).operators["GlobalAveragePool"] == 1
    assert "ReduceMean" not in read_facts(target).operators


def test_denormals_become_zero_and_are_counted(tmp_path, source):
    model = onnx.load(source)
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.ravel()[:3] = (1e-40, -1e-42, 2e-38)  # the last one is a normal float
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "denormal.onnx")
    (result,) = apply_steps(
        (FlushDenormals(),), tmp_path / "denormal.onnx", tmp_path / "out.onnx", calibration=None, max_opset=20, max_ir=9
    )
    flushed = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(result.path).graph.initializer}[
        weight.name
    ]
    assert flushed.ravel()[:3].tolist() == [0.0, 0.0, np.float32(2e-38)]
    assert result.notes == ("flush-denormals: 2 weights set to zero",)


def test_calibration_needs_a_file_with_the_graphs_input(tmp_path, source):
    limits = {"max_opset": 20, "max_ir": 9}
    with pytest.raises(StepError, match="quantize: needs a calibration file"):
        apply_steps((INT8,), source, tmp_path / "out.onnx", calibration=None, **limits)
    write_batches(tmp_path / "other.npz", [{"picture": some_images()}])
    with pytest.raises(StepError, match="has no arrays for input 'image', only picture"):
        apply_steps((INT8,), source, tmp_path / "out.onnx", calibration=tmp_path / "other.npz", **limits)


def test_int8_raises_an_operator_set_without_scales_for_each_channel(tmp_path, calibration):
    old = write(a_network(), tmp_path / "old.onnx", max_opset=12)
    (result,) = apply_steps((INT8,), old, tmp_path / "out.onnx", calibration=calibration, max_opset=20, max_ir=9)
    assert read_facts(result.path).opset == 13
    assert signal_to_noise_db(run(old, some_images()), run(result.path, some_images())) > INT8_SIGNAL_TO_NOISE_DB


def test_float16_refuses_weights_that_it_cannot_hold(tmp_path):
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    scale = numpy_helper.from_array(np.array([4e5, 1.0], np.float32), "scale")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["x", "scale"], ["y"])], "g", value[:1], value[1:], [scale]
    )
    source = tmp_path / "large.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), source)
    with pytest.raises(StepError, match="'scale' holds 400000, which is beyond the largest number of float16, 65504"):
        apply_steps((Float16(),), source, tmp_path / "half.onnx", calibration=None, max_opset=17, max_ir=8)


def test_a_denormal_constant_that_no_product_reads_stays(source):
    model = onnx.load(source)
    tiny = numpy_helper.from_array(np.array([1e-40], np.float32), "tiny")
    model.graph.initializer.append(tiny)
    model.graph.node.append(onnx.helper.make_node("Add", [model.graph.output[0].name, "tiny"], ["sum"]))
    assert flush_denormals(model) == 0
    assert numpy_helper.to_array(model.graph.initializer[-1]) == np.float32(1e-40)

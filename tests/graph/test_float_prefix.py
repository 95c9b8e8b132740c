"""Int8 variants whose first layers stay float: their layers and their outputs."""

import itertools

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx_running import run, some_images, write
from torch import nn

from edgeopt.bench.outputs import write_batches
from edgeopt.graph.apply import apply_steps, write_float_prefix_files
from edgeopt.graph.model import read_initializers
from edgeopt.records.recipe import Compact, FuseQLinear, Quantize, Simplify

STEP = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=32)
ROUNDING_RATIO = 0.02  # of the largest output: a few of 127 steps
LIMITS = {"max_opset": 20, "max_ir": 9}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The float file, its calibration, the folder of its variants, and the nodes of their float prefixes."""
    folder = tmp_path_factory.mktemp("prefixes")
    calibration = folder / "calibration.npz"
    write_batches(calibration, [{"image": some_images(16, seed=seed)} for seed in range(2)])
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Conv2d(8, 8, 1), *wide)
    source = write(network.eval(), folder / "network.onnx")
    simple = apply_steps((Simplify(),), source, folder / "simple.onnx", calibration=None, **LIMITS)[-1].path
    return simple, calibration, folder, write_float_prefix_files(STEP, simple, calibration, folder, fused=True)


def test_prefixes_start_empty_grow_in_the_graphs_order_and_hold_few_of_the_weights(made):
    simple, _, folder, prefixes = made
    assert prefixes[0] == ()
    assert len(prefixes) > 2
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(prefixes))
    total_bytes = sum(values.nbytes for values in read_initializers(onnx.load(simple).graph).values())
    sizes = [(folder / f"{index}.onnx").stat().st_size for index in range(len(prefixes))]
    assert sizes[-1] - sizes[0] < 0.1 * total_bytes
    convolutions = [
        sum(node.op_type == "QLinearConv" for node in onnx.load(folder / f"{index}.onnx").graph.node)
        for index in range(len(prefixes))
    ]
    assert convolutions == sorted(convolutions, reverse=True)
    assert convolutions[-1] < convolutions[0]


def test_a_variant_is_byte_for_byte_the_file_of_a_step_with_these_nodes_in_float(made):
    simple, calibration, folder, prefixes = made
    for index in (0, len(prefixes) - 1):
        step = msgspec.structs.replace(STEP, float_nodes=prefixes[index])
        path = apply_steps(
            (step, FuseQLinear(), Compact()), simple, folder / "again.onnx", calibration=calibration, **LIMITS
        )[-1].path
        assert path.read_bytes() == (folder / f"{index}.onnx").read_bytes()


def test_every_variant_computes_the_network_up_to_int8_rounding(made):
    simple, _, folder, prefixes = made
    images = some_images(16, seed=7)
    expected = run(simple, images)
    for index in range(len(prefixes)):
        error = np.abs(run(folder / f"{index}.onnx", images) - expected).max()
        assert error < ROUNDING_RATIO * np.abs(expected).max()

"""Int8 forms whose first layers stay float: which they are, and what they compute."""

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
from edgeopt.graph.model import arrays
from edgeopt.records.recipe import Compact, FuseQLinear, Quantize, Simplify

STEP = Quantize(activations="uint8", per_channel=True, reduce_range=True, calibration="minmax", samples=32)
ROUNDING_RATIO = 0.02  # of the largest output: a few of 127 steps
LIMITS = {"max_opset": 20, "max_ir": 9}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The float file, its calibration, and the folder with the forms of its fronts."""
    folder = tmp_path_factory.mktemp("fronts")
    calibration = folder / "calibration.npz"
    write_batches(calibration, [{"image": some_images(16, seed=seed)} for seed in range(2)])
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Conv2d(8, 8, 1), *wide)
    source = write(network.eval(), folder / "network.onnx")
    simple = apply_steps((Simplify(),), source, folder / "simple.onnx", calibration=None, **LIMITS)[-1].path
    return simple, calibration, folder, write_float_prefix_files(STEP, simple, calibration, folder, fused=True)


def test_fronts_grow_from_none_in_the_graphs_order_and_hold_few_of_the_weights(made):
    simple, _, folder, fronts = made
    assert fronts[0] == ()
    assert len(fronts) > 2
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(fronts))
    whole = sum(values.nbytes for values in arrays(onnx.load(simple).graph).values())
    sizes = [(folder / f"{index}.onnx").stat().st_size for index in range(len(fronts))]
    assert sizes[-1] - sizes[0] < 0.1 * whole
    convolutions = [
        sum(node.op_type == "QLinearConv" for node in onnx.load(folder / f"{index}.onnx").graph.node)
        for index in range(len(fronts))
    ]
    assert convolutions == sorted(convolutions, reverse=True)
    assert convolutions[-1] < convolutions[0]


def test_a_form_is_byte_for_byte_what_the_step_makes_with_these_nodes_in_float(made):
    simple, calibration, folder, fronts = made
    for index in (0, len(fronts) - 1):
        step = msgspec.structs.replace(STEP, float_nodes=fronts[index])
        path = apply_steps(
            (step, FuseQLinear(), Compact()), simple, folder / "again.onnx", calibration=calibration, **LIMITS
        )[-1].path
        assert path.read_bytes() == (folder / f"{index}.onnx").read_bytes()


def test_every_form_computes_the_network_up_to_int8s_rounding(made):
    simple, _, folder, fronts = made
    images = some_images(16, seed=7)
    expected = run(simple, images)
    for index in range(len(fronts)):
        error = np.abs(run(folder / f"{index}.onnx", images) - expected).max()
        assert error < ROUNDING_RATIO * np.abs(expected).max()

"""Which operators a file may have: those of ONNX Runtime only for its CPU provider, and if the target wants them."""

import msgspec
import pytest

from edgeopt.config.profiles import load_profile
from edgeopt.pipeline.artifacts.onnx_files import can_unpack, graph_steps, may_use_runtime_operators
from edgeopt.records.recipe import FuseQLinear

PHONE = load_profile("phone")


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        ({"operators": "qdq"}, False),
        ({"providers": ("CUDAExecutionProvider",)}, False),
        ({"providers": ("XnnpackExecutionProvider", "CPUExecutionProvider")}, False),
    ],
)
def test_integer_operators_of_the_runtime_are_for_its_cpu_provider(changes, allowed):
    profile = msgspec.structs.replace(PHONE, **changes)
    assert may_use_runtime_operators(profile) == allowed
    assert (FuseQLinear() in graph_steps("int8", profile)) == allowed
    assert can_unpack(profile) == allowed

"""Which operators a file may have: those of ONNX Runtime only for its CPU provider, and if the target wants them."""

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt.config.profiles import load_profile
from edgeopt.errors import StepError
from edgeopt.graph.compatibility import check_portable
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


@pytest.mark.parametrize(
    ("operator", "domain", "refused"),
    [("QLinearConv", "", True), ("MatMulInteger", "", True), ("Gelu", "com.microsoft", True), ("Relu", "", False)],
)
def test_a_file_for_accelerators_has_no_operator_of_the_runtime(tmp_path, operator, domain, refused):
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "m.onnx")
    if refused:
        with pytest.raises(StepError, match=f"has {operator}, which only ONNX Runtime's CPU provider runs"):
            check_portable(tmp_path / "m.onnx")
    else:
        check_portable(tmp_path / "m.onnx")

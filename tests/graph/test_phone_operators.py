"""What the execution providers of phones would run, by their lists of operators."""

import sys

import onnx
from onnx import TensorProto, helper

from edgeopt.graph.counting.phone_operators import count_phone_operators


def a_chain(*operators, domain=""):
    """Return a model of operators with one input each, one after the other."""
    nodes = [
        helper.make_node(operator, [f"v{number}"], [f"v{number + 1}"], domain="" if operator == "Relu" else domain)
        for number, operator in enumerate(operators)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("v0", f"v{len(operators)}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_operators_that_a_provider_lacks_are_counted_and_split_the_graph():
    model = a_chain("Relu", "Sinh", "Relu", "Sinh", "Cosh", "Relu")
    found = {one.provider: one for one in count_phone_operators(model)}
    assert set(found) == {"CoreMLExecutionProvider", "NnapiExecutionProvider"}
    for one in found.values():
        assert (one.nodes, one.listed_nodes, one.parts) == (6, 3, 3)
        assert list(one.unlisted_operators.items()) == [("Sinh", 2), ("Cosh", 1)]
    assert "deprecated since Android 15" in found["NnapiExecutionProvider"].about


def test_an_operator_of_another_domain_is_not_taken_for_one_of_the_same_name():
    for one in count_phone_operators(a_chain("Relu", "Sigmoid", domain="com.other")):
        assert (one.listed_nodes, one.unlisted_operators) == (1, {"Sigmoid": 1})


def test_a_transpose_needs_no_attribute():
    """ONNX Runtime's checker reads the first one."""
    assert [one.listed_nodes for one in count_phone_operators(a_chain("Transpose", "Transpose"))] == [2, 2]


def test_a_model_on_which_the_checker_fails_has_no_count(caplog):
    caplog.set_level("DEBUG", "edgeopt")
    model = a_chain("Relu", "Relu")
    model.graph.node[0].input[0] = "nowhere"
    assert count_phone_operators(model) == ()
    assert "no static check of phones' execution providers" in caplog.text


def a_packed_weight(last):
    """Return a model whose weight is computed from stored values, with an operator before it is used."""
    nodes = [
        helper.make_node("Constant", [], ["two"], value_int=2),
        helper.make_node("Cast", ["stored"], ["wide"], to=TensorProto.UINT64),
        helper.make_node("Cast", ["two"], ["shift"], to=TensorProto.UINT64),
        helper.make_node("BitShift", ["wide", "shift"], ["shifted"], direction="RIGHT"),
        helper.make_node("Cast", ["shifted"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node(*last, ["w"]) if last[0] != "Cast" else helper.make_node(*last, ["w"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy"]
    stored = [helper.make_tensor("stored", TensorProto.UINT8, [2], [4, 8]), helper.make_tensor("scale", 1, [], [0.5])]
    graph = helper.make_graph(nodes, "packed", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_what_is_computed_on_loading_does_not_count():
    for one in count_phone_operators(a_packed_weight(("Cast", ["bytes"]))):
        assert (one.nodes, one.listed_nodes, one.parts, one.unlisted_operators) == (1, 1, 1, {})


def test_pairs_of_quantization_stay_as_providers_read_them():
    coreml, nnapi = count_phone_operators(a_packed_weight(("DequantizeLinear", ["bytes", "scale"])))
    assert (coreml.nodes, coreml.unlisted_operators) == (2, {"DequantizeLinear": 1})
    assert (nnapi.listed_nodes, nnapi.unlisted_operators) == (2, {})


def test_constants_in_branches_and_around_them_do_not_count():
    nodes = [helper.make_node("Constant", [], ["k"], value_float=1.0), helper.make_node("Neg", ["two"], ["n"])]
    nodes += [helper.make_node("Mul", ["k", "n"], ["kn"]), helper.make_node("Add", ["v0", "kn"], ["b"])]
    branch = helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info("b", 1, ["N", 4])])
    model = a_chain("Relu")
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Constant", [], ["two"], value_float=2.0))
    model.graph.node.append(helper.make_node("If", ["c"], ["v1"], then_branch=branch, else_branch=branch))
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    onnx.checker.check_model(model)
    for one in count_phone_operators(model):
        assert (one.nodes, one.listed_nodes, one.unlisted_operators) == (3, 2, {"If": 1})


def test_without_the_checker_there_is_no_count(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.tools.mobile_helpers", None)
    assert count_phone_operators(a_chain("Relu")) == ()


def test_nodes_in_branches_count():
    branch = helper.make_graph(
        [helper.make_node("Sinh", ["v0"], ["b"])], "b", [], [helper.make_tensor_value_info("b", 1, ["N", 4])]
    )
    model = a_chain("Relu")
    node = helper.make_node("If", ["c"], ["v1"], then_branch=branch, else_branch=branch)
    del model.graph.node[:]
    model.graph.node.append(node)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    onnx.checker.check_model(model)
    for one in count_phone_operators(model):
        assert one.nodes == 3
        assert one.unlisted_operators["Sinh"] == 2

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


def test_a_model_on_which_the_checker_fails_has_no_count(caplog):
    """ONNX Runtime's checker reads the first attribute of a Transpose, which may have none."""
    caplog.set_level("DEBUG", "edgeopt")
    assert count_phone_operators(a_chain("Transpose")) == ()
    assert "no static check of phones' execution providers" in caplog.text


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

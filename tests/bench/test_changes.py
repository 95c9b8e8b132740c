import pytest
from tiny_models import a_network, a_quick_profile

from edgeopt.bench.changes import layer_changes, node_changes
from edgeopt.bench.nodes import LONG_PROFILING_TURNS, NodeTime, profile_nodes
from edgeopt.device.local import LocalDevice


def a_node(name, operator, ns):
    return NodeTime(name, operator, [], [], ns)


def rows(against, nodes):
    return [(c.name, c.operator, c.nodes, c.against_ns, c.ns) for c in node_changes(against, nodes)]


def test_nodes_match_by_name_and_the_largest_change_comes_first():
    before = [a_node("a", "Conv", 5.0), a_node("b", "Conv", 3.0)]
    assert rows(before, [a_node("a", "Conv", 4.0), a_node("b", "Conv", 9.0)]) == [
        ("b", "Conv", (1, 1), 3.0, 9.0),
        ("a", "Conv", (1, 1), 5.0, 4.0),
    ]


def test_the_time_of_nodes_that_only_one_file_has_goes_to_their_operator():
    before = [a_node("a", "Conv", 5.0), a_node("b", "Conv", 3.0), a_node("c", "Conv", 2.0)]
    now = [a_node("a", "Conv", 5.0), a_node("b", "QLinearConv", 1.0)]
    assert rows(before, now) == [
        ("", "Conv", (2, 0), 5.0, 0.0),
        ("", "QLinearConv", (0, 1), 0.0, 1.0),
        ("a", "Conv", (1, 1), 5.0, 5.0),
    ]


def test_nodes_without_a_name_or_with_the_same_one_are_told_by_operator():
    twins = [a_node("", "Relu", 1.0), a_node("x", "Add", 1.0), a_node("x", "Add", 2.0)]
    found = rows(twins, [a_node("", "Relu", 2.0), a_node("x", "Add", 4.0)])
    assert found == [("", "Relu", (1, 1), 1.0, 2.0), ("", "Add", (2, 1), 3.0, 4.0)]


def test_layers_of_a_float_and_an_int8_file_match_by_what_they_make():
    def made(operator, shape, ns):
        return NodeTime(operator.lower(), operator, [], [list(shape)], ns)

    before = [made("Conv", (1, 64, 14, 14), 50.0), made("Conv", (1, 8, 14, 14), 9.0), made("Relu", (1, 8, 14, 14), 4.0)]
    now = [
        made("QuantizeLinear", (1, 1, 28, 28), 8.0), made("QLinearConv", (1, 14, 14, 64), 60.0),
        made("QLinearConv", (1, 14, 14, 8), 5.0), made("Transpose", (1, 8, 14, 14), 1.0),
    ]  # fmt: skip
    found = [(c.operator, c.shape, c.nodes, c.against_ns, c.ns) for c in layer_changes(before, now)]
    assert found == [
        ("Conv → QLinearConv", (1, 64, 14, 14), (1, 1), 50.0, 60.0),
        ("QuantizeLinear", (1, 1, 28, 28), (0, 1), 0.0, 8.0),
        ("Transpose", (1, 8, 14, 14), (0, 1), 0.0, 1.0),
        ("Conv → QLinearConv", (1, 8, 14, 14), (1, 1), 9.0, 5.0),
        ("Relu", (1, 8, 14, 14), (1, 0), 4.0, 0.0),
    ]


def test_of_two_real_files_the_added_layers_lost_the_time(tmp_path):
    light = a_network(tmp_path / "light.onnx", width=256, layers=2, inputs=("N", 256))
    heavy = a_network(tmp_path / "heavy.onnx", width=256, layers=8, inputs=("N", 256))
    found = profile_nodes([light, heavy], LocalDevice(), a_quick_profile(), 8, (), None, LONG_PROFILING_TURNS)
    first = node_changes(found[0].nodes, found[1].nodes)[0]
    assert "MatMul" in first.operator
    assert first.nodes[1] - first.nodes[0] == 6
    assert first.gained_ns < 0
    assert {node.provider for file in found for node in file.nodes} == {"CPUExecutionProvider"}


@pytest.mark.parametrize("side", [0, 1])
def test_no_time_is_lost(side):
    files = [[a_node("a", "Conv", 5.0), a_node("b", "Relu", 1.0)], [a_node("a", "Conv", 2.0), a_node("z", "Relu", 7.0)]]
    total = sum(change.against_ns if side == 0 else change.ns for change in node_changes(*files))
    assert total == sum(node.ns for node in files[side])

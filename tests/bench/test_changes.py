import pytest
from tiny_models import a_network, a_run_target

from edgeopt.bench.changes import match_layers, match_nodes
from edgeopt.bench.nodes import LONG_PROFILING_TURNS, NodeTime, profile_nodes


def a_node(name, operator, ns):
    return NodeTime(name, operator, [], [], ns)


def rows(against, nodes):
    return [(c.name, c.operator, c.nodes, c.against_ns, c.ns) for c in match_nodes(against, nodes)]


def test_nodes_match_by_name_and_the_largest_change_comes_first():
    before = [a_node("a", "Conv", 5.0), a_node("b", "Conv", 3.0)]
    assert rows(before, [a_node("a", "Conv", 4.0), a_node("b", "Conv", 9.0)]) == [
        ("b", "Conv", (1, 1), 3.0, 9.0),
        ("a", "Conv", (1, 1), 5.0, 4.0),
    ]


def test_the_time_of_nodes_that_only_one_file_has_goes_to_a_row_for_their_operator():
    before = [a_node("a", "Conv", 5.0), a_node("b", "Conv", 3.0), a_node("c", "Conv", 2.0)]
    now = [a_node("a", "Conv", 5.0), a_node("b", "QLinearConv", 1.0)]
    assert rows(before, now) == [
        ("", "Conv", (2, 0), 5.0, 0.0),
        ("", "QLinearConv", (0, 1), 0.0, 1.0),
        ("a", "Conv", (1, 1), 5.0, 5.0),
    ]


def test_nodes_without_a_name_or_with_a_duplicate_name_are_matched_by_operator():
    before = [a_node("", "Relu", 1.0), a_node("x", "Add", 1.0), a_node("x", "Add", 2.0)]
    found = rows(before, [a_node("", "Relu", 2.0), a_node("x", "Add", 4.0)])
    assert found == [("", "Relu", (1, 1), 1.0, 2.0), ("", "Add", (2, 1), 3.0, 4.0)]


def test_layers_of_a_float_and_an_int8_file_match_by_their_output_sizes():
    def layer(operator, shape, ns):
        return NodeTime(operator.lower(), operator, [], [list(shape)], ns)

    before = [
        layer("Conv", (1, 64, 14, 14), 50.0),
        layer("Conv", (1, 8, 14, 14), 9.0),
        layer("Relu", (1, 8, 14, 14), 4.0),
    ]
    now = [
        layer("QuantizeLinear", (1, 1, 28, 28), 8.0), layer("QLinearConv", (1, 14, 14, 64), 60.0),
        layer("QLinearConv", (1, 14, 14, 8), 5.0), layer("Transpose", (1, 8, 14, 14), 1.0),
    ]  # fmt: skip
    found = [(c.operator, c.shape, c.nodes, c.against_ns, c.ns) for c in match_layers(before, now)]
    assert found == [
        ("Conv → QLinearConv", (1, 64, 14, 14), (1, 1), 50.0, 60.0),
        ("QuantizeLinear", (1, 1, 28, 28), (0, 1), 0.0, 8.0),
        ("Transpose", (1, 8, 14, 14), (0, 1), 0.0, 1.0),
        ("Conv → QLinearConv", (1, 8, 14, 14), (1, 1), 9.0, 5.0),
        ("Relu", (1, 8, 14, 14), (1, 0), 4.0, 0.0),
    ]


def test_between_two_real_files_the_added_layers_take_the_extra_time(tmp_path):
    light = a_network(tmp_path / "light.onnx", width=256, layers=2, inputs=("N", 256))
    heavy = a_network(tmp_path / "heavy.onnx", width=256, layers=8, inputs=("N", 256))
    found = profile_nodes([light, heavy], a_run_target(batch_size=8), LONG_PROFILING_TURNS)
    first = match_nodes(found[0].nodes, found[1].nodes)[0]
    assert "MatMul" in first.operator
    assert first.nodes[1] - first.nodes[0] == 6
    assert first.gained_ns < 0
    assert {node.provider for file in found for node in file.nodes} == {"CPUExecutionProvider"}


@pytest.mark.parametrize("side", [0, 1])
def test_no_time_is_lost(side):
    files = [[a_node("a", "Conv", 5.0), a_node("b", "Relu", 1.0)], [a_node("a", "Conv", 2.0), a_node("z", "Relu", 7.0)]]
    total = sum(change.against_ns if side == 0 else change.ns for change in match_nodes(*files))
    assert total == sum(node.ns for node in files[side])

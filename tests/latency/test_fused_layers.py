import pytest
from onnx import TensorProto, helper

from edgeopt.bench.nodes import FileTime, NodeTime
from edgeopt.errors import StepError
from edgeopt.latency.fused_layers import FusedLayers, split_into_segments
from edgeopt.latency.width_template import SizeResolver, rename_nodes
from edgeopt.records.groups import Dimension

A, B = (Dimension(fixed=0, per_channel={name: 1}) for name in "ab")
FULL, OTHER = {"a": 8, "b": 16}, {"a": 5, "b": 12}
OVERHEAD_NS = 3.0


def a_model():
    """Two convolutions, each with a Relu."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]))
    rename_nodes(model)
    return model


def shapes(a, b):
    rows = [
        ("Conv", [[1, 3, 4, 4], [a, 3, 1, 1]], [[1, a, 4, 4]]),
        ("Relu", [[1, a, 4, 4]], [[1, a, 4, 4]]),
        ("Conv", [[1, a, 4, 4], [b, a, 1, 1]], [[1, b, 4, 4]]),
        ("Relu", [[1, b, 4, 4]], [[1, b, 4, 4]]),
    ]
    return [
        NodeTime(f"edgeopt{i}_{kind}", kind, inputs, outputs, 1.0) for i, (kind, inputs, outputs) in enumerate(rows)
    ]


def a_node(name, ns, operator="Conv"):
    return NodeTime(name, operator, [], [], ns + OVERHEAD_NS)


def a_file(number, first, second, extra=0.0):
    """Two convolutions, fused with and named after their Relus, and a layout change after the first."""
    nodes = [a_node("edgeopt1_0_nchwc", first), a_node("Reorder", extra, "ReorderOutput"),
             a_node("fused edgeopt2_Conv_token_7", second, "FusedConv")]  # fmt: skip
    return FileTime(number, first + extra + second, nodes)


def fused_layers():
    return FusedLayers(a_model(), SizeResolver([A, B], [FULL, OTHER]), [shapes(**FULL), shapes(**OTHER)])


PROBES = [FULL, OTHER, {"a": 4, "b": 4}, {"a": 2, "b": 8}]


def test_a_fused_node_follows_the_widths_of_all_its_members():
    first, second = fused_layers().layers(PROBES, [a_file(i, 100.0 - i, 200.0 + i, 10.0) for i in range(4)])
    assert first.dimensions == (A,)
    assert second.dimensions == (A, B)
    assert [time.sizes for time in second.times] == [(8, 16), (5, 12), (4, 4), (2, 8)]


def test_the_profiler_s_overhead_is_subtracted_and_a_layout_change_counts_for_its_layer():
    first, second = fused_layers().layers(PROBES, [a_file(i, 100.0 - i, 200.0 + i, 10.0) for i in range(4)])
    assert [time.ns for time in first.times] == pytest.approx([110, 109, 108, 107])
    assert [time.ns for time in second.times] == pytest.approx([200, 201, 202, 203])


def test_equal_layers_of_two_networks_have_one_shape_text():
    one, two = (fused_layers().layers(PROBES, [a_file(i, 100.0, 200.0) for i in range(4)]) for _ in range(2))
    assert [layer.shape for layer in one] == [layer.shape for layer in two]
    assert one[0].shape != one[1].shape
    assert "1ax3x1x1" in one[0].shape


def test_a_layer_that_is_fused_into_another_in_one_file_takes_no_time_there():
    relu = FileTime(3, 320.0, [*a_file(3, 100.0, 200.0).nodes, a_node("edgeopt3_Relu", 20.0, "Relu")])
    files = [*(a_file(number, 100.0, 200.0) for number in range(3)), relu]
    last = fused_layers().layers(PROBES, files)[-1]
    assert (last.operator, last.dimensions) == ("Relu", (B,))
    assert [time.ns for time in last.times] == pytest.approx([0, 0, 0, 20])


def test_a_profile_without_the_file_s_node_names_is_refused():
    with pytest.raises(StepError, match="names none of the file's nodes"):
        split_into_segments([a_node("something", 1.0)])

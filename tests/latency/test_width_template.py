import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import StepError
from edgeopt.latency.width_template import (
    SizeResolver,
    WidthTemplate,
    are_distinguishable,
    describe_node,
    normalize_graph,
)
from edgeopt.records.groups import Dimension

SIDE = 4
A, B = (Dimension(fixed=0, per_channel={name: 1}) for name in "ab")
FLAT = Dimension(fixed=0, per_channel={"b": SIDE * SIDE})
FULL, OTHER = {"a": 8, "b": 16}, {"a": 5, "b": 12}


def a_model(a, b, *, depthwise=True, pool=False):
    """3 -> a -> depthwise -> b -> flatten by a literal shape -> 10; weights are sliced from the widest network's."""
    rng = np.random.default_rng(0)
    wide = {"w1": (8, 3, 3, 3), "d": (8, 1, 3, 3), "w2": (16, 8, 1, 1), "b2": (16,), "w3": (16 * SIDE * SIDE, 10)}
    shapes = {"w1": (a, 3, 3, 3), "d": (a, 1, 3, 3), "w2": (b, a, 1, 1), "b2": (b,), "w3": (b * SIDE * SIDE, 10)}
    weights = []
    for name, shape in shapes.items():
        values = rng.standard_normal(wide[name]).astype(np.float32)[tuple(slice(size) for size in shape)]
        weights.append(numpy_helper.from_array(values, name))
    weights.append(numpy_helper.from_array(np.array([-1, b * SIDE * SIDE], np.int64), "shape"))
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["one"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["one", "d"], ["two"], pads=[1, 1, 1, 1], group=a),
        helper.make_node("Conv", ["two", "w2", "b2"], ["three"]),
        helper.make_node("Relu", ["three"], ["four"]),
        helper.make_node("Reshape", ["four", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w3"], ["y"]),
    ]
    if pool:
        nodes[3] = helper.make_node("Sigmoid", ["three"], ["four"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def a_template():
    return WidthTemplate([a_model(**FULL), a_model(**OTHER)], SizeResolver([A, B, FLAT], [FULL, OTHER]))


@pytest.mark.parametrize("widths", [FULL, OTHER, {"a": 2, "b": 3}, {"a": 8, "b": 1}])
def test_a_file_at_any_widths_equals_the_network_exported_at_these_widths(widths):
    sliced, exported = a_template().at(widths), a_model(**widths)
    normalize_graph(exported)
    onnx.checker.check_model(sliced, full_check=True)
    for tensor, expected in zip(sliced.graph.initializer, exported.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(expected))
    for node, expected in zip(sliced.graph.node, exported.graph.node, strict=True):
        assert list(node.attribute) == list(expected.attribute)


def a_shuffle(a):
    """Split into halves, each reshaped, as a simplifier writes it: equal parts by number, equal shapes once."""
    even, shape = a % 2 == 0, numpy_helper.from_array(np.array([1, -1, SIDE], np.int64), "shape")
    sizes = numpy_helper.from_array(np.array([(a + 1) // 2, a // 2], np.int64), "sizes")
    nodes = [
        helper.make_node("Conv", ["x", f"val_{a}"], ["one"]),
        helper.make_node("Split", ["one"] if even else ["one", "sizes"], ["left", "right"], axis=1,
                         **({"num_outputs": 2} if even else {})),
        helper.make_node("Reshape", ["left", "shape"], ["l"]),
        helper.make_node("Reshape", ["right", "shape" if even else "again"], ["r"]),
        helper.make_node("Concat", ["l", "r"], ["both"], axis=1),
        helper.make_node("Mul", ["both", "half"], ["y"]),
    ]  # fmt: skip
    half = numpy_helper.from_array(np.full([1] * even, 0.5, np.float32), "half")
    weights = [numpy_helper.from_array(np.ones((a, 3, 1, 1), np.float32), f"val_{a}"), shape, half]
    if not even:
        weights += [sizes, numpy_helper.from_array(numpy_helper.to_array(shape), "again")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None, SIDE])
    graph = helper.make_graph(nodes, "shuffle", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_splits_and_shared_constants_are_understood_in_every_notation():
    halves = [Dimension(fixed=0, per_channel={name: 1}) for name in ("left", "right")]
    both = Dimension(fixed=0, per_channel={"left": 1, "right": 1})
    widths = [{"left": 4, "right": 4}, {"left": 3, "right": 2}]
    template = WidthTemplate([a_shuffle(8), a_shuffle(5)], SizeResolver([*halves, both], widths))
    model = template.at({"left": 2, "right": 2})
    onnx.checker.check_model(model, full_check=True)
    sizes = {one.name: numpy_helper.to_array(one).tolist() for one in model.graph.initializer if one.dims == [2]}
    assert sizes == {"edgeopt1_in1": [2, 2]}


def a_pair_of_heads(a, b):
    """Two products of any length, each reshaped to heads of 4; layers that are equally wide share the shape."""
    shapes = {width: f"shape{width}" for width in (a, b)}
    nodes = [helper.make_node("Shape", ["x"], ["length"], start=0, end=1)]
    nodes += [
        helper.make_node("Concat", ["length", f"count{width}", "four"], [name], axis=0)
        for width, name in shapes.items()
    ]
    for name, width in (("a", a), ("b", b)):
        nodes += [
            helper.make_node("MatMul", ["x", f"weight_{name}"], [f"wide_{name}"]),
            helper.make_node("Reshape", [f"wide_{name}", shapes[width]], [f"heads_{name}"]),
            helper.make_node("Reshape", [f"heads_{name}", f"flat{width}"], [f"out_{name}"]),
        ]
    constants = {f"weight_{name}": np.ones((3, width), np.float32) for name, width in (("a", a), ("b", b))}
    constants |= {f"count{width}": np.array([width // 4], np.int64) for width in shapes}
    constants |= {f"flat{width}": np.array([-1 if a == b else 5 * width], np.int64) for width in shapes}
    constants["four"] = np.array([4], np.int64)
    graph = helper.make_graph(
        nodes, "heads", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length", 3])],
        [helper.make_tensor_value_info(f"out_{name}", TensorProto.FLOAT, [None]) for name in "ab"],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_layers_that_share_a_computed_shape_because_they_are_equally_wide_may_become_unequal():
    dims = [Dimension(fixed=0, per_channel={name: 1}) for name in "ab"]
    widths = [{"a": 16, "b": 16}, {"a": 12, "b": 8}]
    template = WidthTemplate([a_pair_of_heads(16, 16), a_pair_of_heads(12, 8)], SizeResolver(dims, widths))
    model = template.at({"a": 4, "b": 8})
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    for length in (5, 7):
        outputs = session.run(None, {"x": np.ones((length, 3), np.float32)})
        assert [value.shape for value in outputs] == [(4 * length,), (8 * length,)]


def test_a_split_along_a_dynamic_dimension_is_unchanged():
    model = a_shuffle(8)
    model.graph.node[1].attribute[0].i = 0  # along the batch
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    normalize_graph(model)
    split = model.graph.node[1]
    assert list(split.input) == ["one"]
    assert {one.name for one in split.attribute} == {"axis", "num_outputs"}


def test_nodes_are_named_by_number_and_graph_inputs_and_outputs_keep_their_names():
    graph = a_template().at(FULL).graph
    assert [node.name for node in graph.node][:2] == ["edgeopt0_Conv", "edgeopt1_Conv"]
    assert graph.node[1].input[0] == graph.node[0].output[0] == "edgeopt0_0"
    assert (graph.input[0].name, graph.output[0].name) == ("x", "y")


def test_groups_that_shrink_by_the_same_ratio_are_not_distinguishable():
    assert are_distinguishable([A, B], [FULL, OTHER])
    assert not are_distinguishable([A, B], [FULL, {"a": 4, "b": 8}])
    assert are_distinguishable([A, B], [FULL, {"a": 4, "b": 8}, {"a": 4, "b": 4}])


def test_sizes_of_no_tensor_are_known_if_the_files_distinguish_them():
    both, single = Dimension(fixed=0, per_channel={"a": 2, "b": 1}), Dimension(fixed=4, per_channel={"a": 1})
    assert SizeResolver([A, B], [FULL, OTHER]).resolve([8, 5]).dimension == A
    with pytest.raises(StepError, match="follows no known group"):
        SizeResolver([A, B], [FULL, OTHER]).resolve([32, 22])
    found = SizeResolver([A, B], [FULL, OTHER], [both, single]).resolve([32, 22])
    assert (found.dimension, found.at({"a": 2, "b": 3})) == (both, 7)
    same = Dimension(fixed=0, per_channel={"a": 4, "b": 2})  # twice as large, at any widths
    assert SizeResolver([A, B], [FULL, OTHER], [both, same]).resolve([32, 22]).at({"a": 2, "b": 3}) == 7
    alike = Dimension(fixed=8, per_channel={"a": 5})  # 48 and 33: the same ratio, by chance
    with pytest.raises(StepError, match="follows no known group"):
        SizeResolver([A, B], [FULL, OTHER], [both, alike]).resolve([32, 22])
    assert SizeResolver([A, B], [FULL, OTHER], [], [both]).resolve([32, 22]).dimension == both
    assert SizeResolver([A, B], [FULL, OTHER], [both], [alike]).resolve([32, 22]).dimension == both, "a guess yields"
    with pytest.raises(StepError, match="follows no known group"):
        SizeResolver([A, B], [FULL, OTHER], [both, alike], [both]).resolve([32, 22])


def test_a_multiple_of_a_dimension_needs_no_further_file():
    assert are_distinguishable([B, FLAT], [FULL, OTHER])


def test_files_with_different_nodes_are_refused():
    with pytest.raises(StepError, match="different nodes at different widths"):
        WidthTemplate([a_model(**FULL), a_model(**OTHER, pool=True)], SizeResolver([A, B, FLAT], [FULL, OTHER]))


def test_a_size_that_follows_no_known_group_is_refused():
    with pytest.raises(StepError, match="follows no known group"):
        WidthTemplate([a_model(**FULL), a_model(**OTHER)], SizeResolver([A], [FULL, OTHER]))


def test_equal_layers_have_equal_descriptions():
    first, second = (a_model(a, 16).graph.node[0] for a in (4, 8))
    assert describe_node(first) == describe_node(second)
    assert describe_node(first) != describe_node(a_model(4, 16).graph.node[2])

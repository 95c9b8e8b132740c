"""Damaged models are refused with what is wrong; the structure of sound ones, control flow too, is accepted."""

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import EdgeoptError, TaskError
from edgeopt.graph.facts import is_mostly_products, read_facts
from edgeopt.graph.given.files import read_given
from edgeopt.graph.given.structure import find_fault
from edgeopt.pipeline.given_model import open_given_task, take_one_batch

FLOAT = TensorProto.FLOAT
X, Y = (helper.make_tensor_value_info(name, FLOAT, ["n", 3]) for name in "xy")
WEIGHT = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
MUL = helper.make_node("MatMul", ["x", "w"], ["y"])


def model(nodes, weights=(WEIGHT,), inputs=(X,), outputs=(Y,), opsets=(("", 17),)):
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in opsets], ir_version=8)


def tensor(**changes):
    copy = onnx.TensorProto.FromString(WEIGHT.SerializeToString())
    for name, value in changes.items():
        if name == "dims":
            del copy.dims[:]
            copy.dims.extend(value)
        else:
            setattr(copy, name, value)
    return copy


CIRCLE = [helper.make_node("Add", ["x", "b"], ["a"], "one"), helper.make_node("Add", ["a", "w"], ["b"]), MUL]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (
            model([helper.make_node("MatMul", ["x", "missing"], ["y"])]),
            "MatMul .of 'y'. reads 'missing', which nothing",
        ),
        (model([MUL], outputs=[helper.make_tensor_value_info("z", FLOAT, None)]), "nothing computes its output 'z'"),
        (model([MUL, MUL]), "the value 'y' is given or computed twice"),
        (model([MUL], [WEIGHT, WEIGHT]), "two stored tensors have the name 'w'"),
        (model([MUL], inputs=[X, X]), "two inputs have the name 'x'"),
        (model(CIRCLE), "computes in a circle, through Add .* and Add"),
        (model([MUL], [tensor(dims=[3, 4])]), r"tensor 'w' of shape \(3, 4\) has 36 bytes instead of 48"),
        (model([MUL], [tensor(dims=[2**40, 2**40])]), "has 36 bytes instead of"),
        (model([MUL], [tensor(dims=[-3, -3])]), r"tensor 'w' has the shape \(-3, -3\)"),
        (model([MUL], [tensor(data_type=99)]), r"has an unknown type \(99\)"),
        (model([MUL], opsets=[("acme", 1)]), "does not name the version of the standard operator set"),
    ],
)
def test_the_fault_of_a_damaged_model_is_named(tmp_path, broken, reason):
    (tmp_path / "m.onnx").write_bytes(broken.SerializeToString())
    with pytest.raises(TaskError, match=rf"m\.onnx is damaged: .*{reason}|m\.onnx is damaged: it {reason}"):
        read_given(tmp_path / "m.onnx")


def branch(name, reads):
    relu, output = helper.make_node("Relu", [reads], [name]), helper.make_tensor_value_info(name, FLOAT, None)
    return helper.make_graph([relu], name, [], [output])


def test_branches_read_outer_values_and_nodes_may_come_in_any_order():
    yes = numpy_helper.from_array(np.array(True), "yes")
    choose = helper.make_node("If", ["yes"], ["y"], then_branch=branch("t", "h"), else_branch=branch("e", "x"))
    hidden = helper.make_node("Relu", ["x"], ["h"])
    assert find_fault(model([choose, hidden], [yes])) is None
    circle = helper.make_node("If", ["yes"], ["y"], then_branch=branch("t", "h"), else_branch=branch("e", "y"))
    assert "computes in a circle" in find_fault(model([circle, hidden], [yes]))
    unknown = helper.make_node("If", ["yes"], ["y"], then_branch=branch("t", "h"), else_branch=branch("e", "q"))
    assert "reads 'q', which nothing computes" in find_fault(model([unknown, hidden], [yes]))


def wrapped(field, content):
    """Return protobuf's bytes of a message in a field."""
    size, length = len(content), b""
    while size >= 128:
        length, size = length + bytes([size % 128 + 128]), size // 128
    return bytes([field << 3 | 2]) + length + bytes([size]) + content


def test_graphs_in_graphs_too_deep_to_read_are_refused(tmp_path):
    graph = branch("y", "x").SerializeToString()
    for _ in range(200):
        graph = wrapped(1, wrapped(5, wrapped(6, graph)))  # a graph's node, its attribute, the graph in that
    (tmp_path / "m.onnx").write_bytes(wrapped(7, graph))
    with pytest.raises(TaskError, match=r"m\.onnx cannot be read as an ONNX model"):
        read_given(tmp_path / "m.onnx")


def look_at(path):
    """Do what every command does with a given file before anything runs."""
    given = read_given(path)
    taken = take_one_batch(path, given.model, None, 1)
    read_facts(path, taken.sample_shapes)
    is_mostly_products(given.model, taken.sample_shapes)
    open_given_task(path, str(path.with_name("ids.npy")))


def mutated(content, rng):
    """Change, remove, or add a few bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        kind = rng.random()
        if kind < 0.7:
            data[at] = rng.randrange(256)
        elif kind < 0.85:
            del data[at : at + rng.randint(1, 4)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 4))
    return bytes(data)


def test_a_file_with_a_few_wrong_bytes_is_read_or_refused_in_a_sentence(tmp_path):
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Constant", [], ["w"], value=WEIGHT),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    table = numpy_helper.from_array(np.ones((9, 3), np.float32), "table")
    content = model(nodes, [table], [ids], [helper.make_tensor_value_info("y", FLOAT, None)]).SerializeToString()
    np.save(tmp_path / "ids.npy", np.zeros((4, 5), np.int64))
    rng, outcomes = random.Random(0), set()
    for _ in range(400):
        (tmp_path / "m.onnx").write_bytes(mutated(content, rng))
        try:
            look_at(tmp_path / "m.onnx")
            outcomes.add("read")
        except EdgeoptError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    ("opset", "operator", "attributes"),
    [
        (12, "Unsqueeze", {"axes": [0]}),
        (10, "Pad", {"pads": [0, 0, 0, 0]}),
        (9, "Slice", {"starts": [0], "ends": [1]}),
        (9, "TopK", {"k": 1}),
        (1, "Reshape", {"shape": [0, 3]}),
        (7, "Upsample", {"scales": [1.0, 1.0]}),
    ],
)
def test_a_node_of_an_old_operator_set_has_its_sizes_in_attributes(opset, operator, attributes):
    outputs = ["y", "places"] if operator == "TopK" else ["y"]
    old = helper.make_node(operator, ["x"], outputs, **attributes)
    assert find_fault(model([old], [], opsets=[("", opset)])) is None
    assert "has 1 inputs and 1 outputs" in find_fault(model([helper.make_node(operator, ["x"], ["y"])], []))


def test_an_operator_that_its_operator_set_lacks_is_left_to_the_runtime():
    assert find_fault(model([helper.make_node("Gelu", ["x"], ["y"])], opsets=[("", 12)])) is None

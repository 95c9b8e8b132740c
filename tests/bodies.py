"""Real files with branches and loop bodies, each with an input and the multiply-accumulates of one sample."""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_RANDOM = np.random.RandomState(0)
_node = helper.make_node
_FLAG = TensorProto.BOOL


class BodyFile(NamedTuple):
    shape: tuple
    macs: int
    make: object


def floats(name, *shape):
    return numpy_helper.from_array((_RANDOM.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)


def ints(name, values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def flag(name):
    return numpy_helper.from_array(np.array(True), name)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def loop_body(nodes, state, stored=(), stacked=(), condition=None):
    """A body of a Loop: its state is ``h`` and becomes ``h2``."""
    keep = condition or [_node("Identity", ["go"], ["go2"])]
    inputs = [value("i", [], TensorProto.INT64), value("go", [], _FLAG), value("h", state)]
    outputs = [value("go2", [], _FLAG), value("h2", state), *stacked]
    return helper.make_graph([*nodes, *keep], "body", inputs, outputs, list(stored))


def initial_state(size):
    """Nodes for zeros ``(n, size)`` as ``h0``, and their constant."""
    nodes = [
        _node("Shape", ["x"], ["n"], start=0, end=1),
        _node("Concat", ["n", "size"], ["hs"], axis=0),
        _node("ConstantOfShape", ["hs"], ["h0"]),
    ]
    return nodes, ints("size", [size])


def trip_count():
    step = [_node("MatMul", ["h", "inner"], ["a"]), _node("Add", ["a", "bias"], ["b"]), _node("Relu", ["b"], ["h2"])]
    nodes = [
        _node("MatMul", ["x", "w0"], ["h0"]),
        _node("Loop", ["trip", "yes", "h0"], ["h1"], body=loop_body(step, ["n", 64], [floats("inner", 64, 64)])),
        _node("MatMul", ["h1", "w1"], ["y"]),
    ]
    return nodes, [floats("w0", 32, 64), floats("w1", 64, 40), floats("bias", 64), ints("trip", 5), flag("yes")]


def condition():
    step = [_node("MatMul", ["h", "inner"], ["a"]), _node("Tanh", ["a"], ["h2"])]
    end = [_node("ReduceMax", ["h2"], ["m"], keepdims=0), _node("Less", ["m", "limit"], ["go2"])]
    body = loop_body(step, [1, 64], [floats("inner", 64, 64)], condition=end)
    nodes = [
        _node("MatMul", ["x", "w0"], ["h0"]),
        _node("Loop", ["trip", "yes", "h0"], ["h1"], body=body),
        _node("MatMul", ["h1", "w1"], ["y"]),
    ]
    limit = numpy_helper.from_array(np.float32(0.9), "limit")
    return nodes, [floats("w0", 32, 64), floats("w1", 64, 40), limit, ints("trip", 20), flag("yes")]


def shared_kernel():
    """The body's convolution reads weights that one outside reads too."""
    step = [_node("Conv", ["h", "wc", "bc"], ["a"], pads=[1, 1, 1, 1]), _node("Relu", ["a"], ["h2"])]
    nodes = [
        _node("Conv", ["x", "ws"], ["s"], pads=[1, 1, 1, 1]),
        _node("Conv", ["s", "wc", "bc"], ["h0"], pads=[1, 1, 1, 1]),
        _node("Loop", ["trip", "yes", "h0"], ["h1"], body=loop_body(step, ["n", 16, 8, 8])),
        _node("GlobalAveragePool", ["h1"], ["p"]),
        _node("Flatten", ["p"], ["f"]),
        _node("MatMul", ["f", "w1"], ["y"]),
    ]
    kernels = [floats("ws", 16, 3, 3, 3), floats("wc", 16, 16, 3, 3), floats("bc", 16)]
    return nodes, [*kernels, floats("w1", 16, 40), ints("trip", 3), flag("yes")]


def exported_for():
    """A loop over the sequence as exporters write it; the body's ``w0`` hides another one outside."""
    step = [
        _node("Gather", ["xs", "i"], ["xt"]),
        _node("MatMul", ["xt", "w0"], ["a"]),
        _node("Add", ["a", "h"], ["b"]),
        _node("Tanh", ["b"], ["h2"]),
        _node("Identity", ["h2"], ["out"]),
    ]
    zeros, size = initial_state(48)
    nodes = [
        _node("MatMul", ["x", "w0"], ["x2"]),
        _node("Transpose", ["x2"], ["xs"], perm=[1, 0, 2]),
        _node("Shape", ["xs"], ["sizes"]),
        _node("Gather", ["sizes", "zero"], ["trip"]),
        *zeros,
        _node("Loop", ["trip", "", "h0"], ["h1", "steps"],
              body=loop_body(step, ["n", 48], [floats("w0", 32, 48)], [value("out", ["n", 48])])),
        _node("MatMul", ["h1", "w1"], ["y"]),
    ]  # fmt: skip
    return nodes, [floats("w0", 16, 32), floats("w1", 48, 40), size, ints("zero", 0)]


def scan():
    inner = [
        _node("MatMul", ["xt", "wx"], ["a"]),
        _node("MatMul", ["h", "wh"], ["b"]),
        _node("Add", ["a", "b"], ["c"]),
        _node("Tanh", ["c"], ["h2"]),
        _node("Identity", ["h2"], ["out"]),
    ]
    ends = [value("h", ["n", 48]), value("xt", ["n", 16])], [value("h2", ["n", 48]), value("out", ["n", 48])]
    body = helper.make_graph(inner, "body", *ends, [floats("wx", 16, 48), floats("wh", 48, 48)])
    zeros, size = initial_state(48)
    nodes = [
        *zeros,
        _node("Transpose", ["x"], ["xs"], perm=[1, 0, 2]),
        _node("Scan", ["h0", "xs"], ["h1", "steps"], body=body, num_scan_inputs=1),
        _node("MatMul", ["h1", "w1"], ["y"]),
    ]
    return nodes, [floats("w1", 48, 40), size]


def scanned_lstm():
    """A cell with its weights outside."""
    hidden = 32
    inner = [
        _node("Concat", ["xt", "h"], ["xh"], axis=1),
        _node("Gemm", ["xh", "W", "B"], ["g"]),
        _node("Split", ["g"], ["i", "f", "o", "g2"], axis=1, num_outputs=4),
        *(_node("Sigmoid", [one], [f"s{one}"]) for one in "ifo"),
        _node("Tanh", ["g2"], ["t"]),
        _node("Mul", ["si", "t"], ["p"]),
        _node("Mul", ["sf", "c"], ["q"]),
        _node("Add", ["p", "q"], ["c2"]),
        _node("Tanh", ["c2"], ["tc"]),
        _node("Mul", ["so", "tc"], ["h2"]),
    ]
    states = [[value(name, ["n", hidden]) for name in names] for names in (("h", "c"), ("h2", "c2"))]
    body = helper.make_graph(inner, "body", [*states[0], value("xt", ["n", 16])], states[1])
    zeros, size = initial_state(hidden)
    nodes = [
        *zeros,
        _node("Transpose", ["x"], ["xs"], perm=[1, 0, 2]),
        _node("Scan", ["h0", "h0", "xs"], ["h1", "c1"], body=body, num_scan_inputs=1),
        _node("MatMul", ["h1", "w1"], ["y"]),
    ]
    return nodes, [floats("w1", hidden, 40), size, floats("W", 16 + hidden, 4 * hidden), floats("B", 4 * hidden)]


def nested_branches():
    """Both branches of an If have weights and a value of the same names; one has an If in it that reads outer names."""

    def ending(operator):
        return helper.make_graph([_node(operator, ["zz"], [operator])], operator, [], [value(operator, ["n", 64])])

    inner = _node("If", ["tiny"], ["z"], then_branch=ending("Relu"), else_branch=ending("Tanh"))
    outputs = [value("z", ["n", 64])]
    then = helper.make_graph([_node("MatMul", ["x", "w"], ["zz"]), inner], "then", [], outputs, [floats("w", 32, 64)])
    other = helper.make_graph([_node("MatMul", ["x", "w"], ["z"])], "else", [], outputs, [floats("w", 32, 64)])
    nodes = [
        _node("ReduceMean", ["x"], ["m"], keepdims=0),
        _node("Greater", ["m", "zero"], ["positive"]),
        _node("Less", ["m", "small"], ["tiny"]),
        _node("If", ["positive"], ["r"], then_branch=then, else_branch=other),
        _node("MatMul", ["r", "w1"], ["y"]),
    ]
    limits = [numpy_helper.from_array(np.float32(limit), name) for name, limit in (("zero", 0), ("small", 0.1))]
    return nodes, [floats("w1", 64, 40), *limits]


FILES = {
    "trip_count": BodyFile(("n", 32), 32 * 64 + 5 * 64 * 64 + 64 * 40, trip_count),
    "condition": BodyFile((1, 32), 32 * 64 + 64 * 64 + 64 * 40, condition),
    "shared_kernel": BodyFile(("n", 3, 8, 8), 64 * 16 * (27 + 4 * 144) + 16 * 40, shared_kernel),
    "exported_for": BodyFile(("n", 12, 16), 12 * (16 * 32 + 32 * 48) + 48 * 40, exported_for),
    "scan": BodyFile(("n", 12, 16), 12 * (16 * 48 + 48 * 48) + 48 * 40, scan),
    "scanned_lstm": BodyFile(("n", 12, 16), 12 * 48 * 128 + 32 * 40, scanned_lstm),
    "nested_branches": BodyFile((1, 32), 32 * 64 + 64 * 40, nested_branches),
}


def write_file(folder, name):
    """Write one of the files; weights are the same in every run."""
    _RANDOM.seed(0)
    nodes, stored = FILES[name].make()
    shape = list(FILES[name].shape)
    graph = helper.make_graph(nodes, name, [value("x", shape)], [value("y", [shape[0], 40])], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def data_of(name, rows=8):
    """Return inputs ``(rows, ...)``."""
    return np.random.RandomState(1).standard_normal((rows, *FILES[name].shape[1:])).astype(np.float32)

"""Outputs whose number of rows depends on the values, found in the graph."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.given.rows import find_selected_outputs

CONSTANTS = {"zero": [0], "one": [1], "two": [2], "flat": [-1], "rows4": [-1, 4], "samples": [0, 4], "begin": [0]}


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


NMS = node("NonMaxSuppression", "boxes scores", "found")
NMS_TO_BOXES = [
    NMS,
    node("Gather", "found two", "i", axis=1),
    node("Squeeze", "i one", "j"),
    node("Gather", "flatboxes j", "kept", axis=0),
    node("Sigmoid", "kept", "y"),
]
SELECTED = {
    "nms": [NMS, node("Cast", "found", "y", to=TensorProto.INT32)],
    "boxes by nms": NMS_TO_BOXES,
    "a column of nms": [NMS, node("Slice", "found begin two one", "y")],
    "a mask": [node("NonZero", "m", "nz"), node("Transpose", "nz", "i", perm=[1, 0]), node("GatherND", "x i", "y")],
    "nonzero of a vector": [node("NonZero", "m", "nz"), node("Reshape", "nz flat", "y")],
    "unique": [node("Unique", "x", "y")],
    "compress": [node("Compress", "x m", "c", axis=0), node("MatMul", "c w", "y")],
}
NOT_SELECTED = {
    "indices along another axis": [node("NonZero", "m", "nz"), node("Gather", "x nz", "y", axis=1)],
    "a scattered mask": [node("NonZero", "m", "nz"), node("Transpose", "nz", "i", perm=[1, 0]),
                         node("ScatterND", "x i u", "y")],
    "nonzero itself": [node("NonZero", "m", "y")],
    "a count": [NMS, node("Shape", "found", "y")],
    "best of each": [node("TopK", "x one", "y i")],
    "compressed columns": [node("Compress", "x m", "y", axis=1)],
    "one row of nms": [NMS, node("Gather", "found zero", "y", axis=0)],
}  # fmt: skip


def selected(nodes):
    graph = helper.make_graph(
        nodes, "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(values), name) for name, values in CONSTANTS.items()],
    )  # fmt: skip
    return find_selected_outputs(graph)


@pytest.mark.parametrize("name", SELECTED)
def test_rows_that_the_values_decide_are_found(name):
    assert list(selected(SELECTED[name])) == ["y"]


def test_the_operator_is_named():
    assert selected(NMS_TO_BOXES) == {"y": "NonMaxSuppression"}


@pytest.mark.parametrize("name", NOT_SELECTED)
def test_other_outputs_are_left_alone(name):
    assert selected(NOT_SELECTED[name]) == {}

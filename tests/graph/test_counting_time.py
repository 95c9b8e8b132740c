"""Facts of graphs with thousands of nodes are read in seconds."""

import itertools
import time

import onnx
from onnx import TensorProto, helper

from edgeopt.graph.facts import read_facts

NODES = 4000


def test_the_time_to_read_facts_grows_with_the_nodes_and_not_with_their_square(tmp_path):
    names = [f"v{number}" for number in range(NODES + 1)]
    nodes = [helper.make_node("Relu", [before], [after]) for before, after in itertools.pairwise(names)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in names]
    graph = helper.make_graph(nodes, "g", values[:1], values[-1:], value_info=values[1:-1])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    begin = time.process_time()
    read_facts(tmp_path / "m.onnx")
    assert time.process_time() - begin < 20  # less than 1 s here; 200 s when each node read all shapes again

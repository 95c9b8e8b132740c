"""Short names inside a file: what they stand for is known, and a target may ask for readable ones."""

import onnx
import pytest
from onnx_running import a_network, write

from edgeopt.graph.apply import apply_steps
from edgeopt.records.recipe import Compact

LIMITS = {"max_opset": 20, "max_ir": 9}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(a_network(), tmp_path_factory.mktemp("names") / "source.onnx")


def inner_names(path):
    graph = onnx.load(path).graph
    outer = {value.name for value in (*graph.input, *graph.output)}
    return [name for node in graph.node for name in (*node.input, *node.output) if name and name not in outer]


def test_each_short_name_stands_for_the_value_that_the_same_node_reads_or_writes(source, tmp_path):
    (short,) = apply_steps((Compact(),), source, tmp_path / "short.onnx", calibration=None, **LIMITS)
    (long,) = apply_steps((Compact(keep_names=True),), source, tmp_path / "long.onnx", calibration=None, **LIMITS)
    assert long.names == {}
    assert [short.names[name] for name in inner_names(short.path)] == inner_names(long.path)
    assert set(inner_names(long.path)) <= set(inner_names(source))
    assert short.path.stat().st_size < long.path.stat().st_size
    assert [node.name for node in onnx.load(long.path).graph.node] == [
        node.name for node in onnx.load(source).graph.node
    ]

"""A network trained in channels-last memory exports to the same graph."""

import onnx
import pytest
import tiny_task
import torch

from edgeopt.export.to_onnx import export


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_channels_last_weights_add_no_nodes_and_stay_in_channels_last_memory(tmp_path, exporter):
    torch.manual_seed(0)
    net = tiny_task.TinyNet(8).eval()
    operators = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        net = net.to(memory_format=memory_format)
        path = tmp_path / "net.onnx"
        export(
            net,
            (torch.randn(2, 1, 8, 8),),
            path,
            input_names=("input",),
            output_names=("output",),
            max_opset=20,
            max_ir=9,
            exporter=exporter,
        )
        operators.append([node.op_type for node in onnx.load(path).graph.node])
    assert operators[0] == operators[1]
    assert net.body[0].weight.is_contiguous(memory_format=torch.channels_last)

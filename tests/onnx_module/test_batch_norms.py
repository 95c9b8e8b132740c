"""Batch norms that an export folded come back for a training: where, without a change, and until the next export."""

import numpy as np
import onnx
import onnxruntime
import onnxsim
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeopt.export.to_onnx import export
from edgeopt.onnx_module.batch_norms import measure_convolutions, restore_batch_norms
from edgeopt.onnx_module.convert import to_module
from edgeopt.passes.network import Network
from edgeopt.passes.training_graph import training_graph


class SmallDetector(nn.Module):
    """Folded convolutions; one without a bias, one over a single position, one whose map is an output, a last layer."""

    def __init__(self):
        super().__init__()
        self.first, self.plain = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.squeeze, self.map = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.middle, self.head = nn.Conv2d(8, 6, 3, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.plain(self.first(x).relu()).relu()
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.map(x).sigmoid(), self.head(self.middle(x).relu())


def exported(module, x, path, names):
    export(
        module, (x,), path, input_names=["x"], output_names=names, max_opset=18, max_ir=9,
        axes=[{0: "batch"}], output_batch=[0] * len(names),
    )  # fmt: skip
    model, is_equal = onnxsim.simplify(onnx.load(path))
    assert is_equal
    return model


def restored(model, batches):
    module = to_module(model)
    found = measure_convolutions(module, batches)
    restore_batch_norms(module, found)
    return module, found


@pytest.fixture
def detector(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 3, 12, 12) * 3 + 1
    model = exported(SmallDetector(), x, tmp_path / "given.onnx", ["map", "boxes"])
    return model, x


def test_norms_come_after_convolutions_that_may_have_had_one_and_change_nothing(detector):
    model, x = detector
    module, found = restored(model, [(x[:10],), (x[10:],)])
    assert {name: values.shape[1] for name, values in found.items()} == {
        next(node.output[0] for node in model.graph.node if weight in node.input): channels
        for weight, channels in (("first.weight", 8), ("middle.weight", 6))
    }
    for ours, theirs in zip(module(x), to_module(model)(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    first = torch.conv2d(x, module.get_parameter("first.weight"), module.get_parameter("first.bias"), padding=1)
    mean, variance = next(iter(found.values()))
    torch.testing.assert_close(mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(variance, first.var((0, 2, 3), correction=0))


def test_in_training_they_bring_values_back_to_their_size_and_an_export_folds_them(detector, tmp_path):
    model, x = detector
    module, _ = restored(model, [(x,)])
    network = Network.trace(module, (x,))
    expected = [value.detach().clone() for value in network.eval_module(x)]
    with torch.no_grad():
        network.parameters()["first.weight"] *= 0.25
        network.parameters()["first.bias"] *= 0.25
    with torch.no_grad():
        away, near = (
            float((run(x)[1] - expected[1]).std() / expected[1].std())
            for run in (network.eval_module, training_graph(network.eval_module))
        )
    assert away > 0.1 > 10 * near
    out = exported(network.eval_module, x, tmp_path / "out.onnx", ["map", "boxes"])
    assert sorted(node.op_type for node in out.graph.node).count("Conv") == 6
    assert not any(node.op_type == "BatchNormalization" for node in out.graph.node)
    session = onnxruntime.InferenceSession(out.SerializeToString(), providers=["CPUExecutionProvider"])
    boxes = session.run(["boxes"], {"x": x.numpy()})[0]
    np.testing.assert_allclose(boxes, network.eval_module(x)[1].detach().numpy(), rtol=1e-3, atol=1e-4)


def test_convolutions_beside_a_batch_norm_stay_as_they_are():
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 3, 3), "b1": (4,), "w2": (4, 4, 3), "b2": (4,), "w3": (2, 4, 3), "b3": (2,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {name: np.abs(rng.standard_normal(4)).astype(np.float32) + 0.5 for name in ("s", "b", "m", "v")}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Conv", ["n", "w2", "b2"], ["c"]),
        helper.make_node("Conv", ["c", "w3", "b3"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["n", 3, 12])], [value("y", TensorProto.FLOAT, ["n", 2, 6])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module, found = restored(model, [(torch.randn(4, 3, 12),)])
    assert not found
    assert len(module.steps) == 4

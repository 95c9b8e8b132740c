"""Whole files as modules: parity, names, what is refused, and that the modules can be traced, pruned and exported."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from benchmarks.zoo import ZOO
from edgeopt.errors import StepError
from edgeopt.export.to_onnx import export
from edgeopt.onnx_module.convert import to_module
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.proof import PROOF_TOLERANCE, verify_pruning
from edgeopt.passes.prune.rewrite import prune

PARITY = 1e-5  # relative to the largest value: both sides are torch in float32
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


class SmallUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Conv2d(12, 12, 3, 1, 1, groups=12)
        self.up = nn.Conv2d(12, 8, 1)
        self.end = nn.Conv2d(11, 4, 3, padding=1)

    def forward(self, x):
        small = nn.functional.hardswish(self.depthwise(self.down(x)))
        large = nn.functional.interpolate(self.up(small), size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.end(torch.cat([large, x], 1))


class SmallEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.LayerNorm(16)
        self.feed = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, tokens):
        x = self.embedding(tokens)
        batch, length, width = x.shape
        q, k, v = (f(x).view(batch, length, 2, width // 2).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = (q @ k.transpose(2, 3) / (width // 2) ** 0.5).softmax(-1)
        x = self.norm(x + self.out((scores @ v).transpose(1, 2).reshape(batch, length, width)))
        return x + self.feed(x)


class SmallRecurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 10, batch_first=True, bidirectional=True)
        self.lstm = nn.LSTM(20, 8, batch_first=True)
        self.end = nn.Linear(8, 3)

    def forward(self, x):
        return self.end(self.lstm(self.gru(x)[0])[0][:, -1])


NETWORKS = {
    "unet": lambda: (SmallUNet(), torch.randn(2, 3, 16, 16)),
    "encoder": lambda: (SmallEncoder(), torch.randint(20, (2, 7))),
    "recurrent": lambda: (SmallRecurrent(), torch.randn(2, 9, 6)),
}


def like(example: torch.Tensor, batch: int) -> torch.Tensor:
    shape = (batch, *example.shape[1:])
    return torch.randn(shape) if example.is_floating_point() else torch.randint(int(example.max()) + 1, shape)


def exported(module: nn.Module, example: torch.Tensor, path: Path, exporter="torchscript") -> onnx.ModelProto:
    export(
        module, (example,), path, input_names=["given"], output_names=["answer"], max_opset=18, max_ir=10,
        exporter=exporter,
    )  # fmt: skip
    return onnx.load(path)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max()) <= PARITY * float(expected.abs().max())


def assert_prunable(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Trace, prune by half with proof, and export the result under the same names with a dynamic batch."""
    network = Network.trace(module, (example,))
    groups = analyse(network)
    assert groups.free
    assert not groups.without_rule
    keep = {name: list(range(max(1, group.channels // 2))) for name, group in groups.free.items()}
    pruned = prune(network, groups, keep)
    assert verify_pruning(network, groups, keep, pruned, network.example_inputs) < PROOF_TOLERANCE
    again = exported(pruned.eval_module, example, path)
    assert [value.name for value in again.graph.input] == ["given"]
    x = like(example, 3)
    with torch.no_grad():
        assert_same(to_module(again)(x), pruned.eval_module(x))


@pytest.mark.parametrize(
    ("name", "exporter"),
    [("unet", "torchscript"), ("unet", "dynamo"), ("encoder", "torchscript"), ("recurrent", "dynamo")],
)
def test_an_exported_network_computes_the_same_and_is_pruned_with_proof(name, exporter, tmp_path):
    torch.manual_seed(0)
    network, example = NETWORKS[name]()
    network.eval()
    traced = Network.trace(network, (example,))
    module = to_module(exported(traced.eval_module, example, tmp_path / "file.onnx", exporter))
    for batch in (1, 2, 5):
        x = like(example, batch)
        with torch.no_grad():
            assert_same(module(x), network(x))
    assert_prunable(module, example, tmp_path / "pruned.onnx")
    found = analyse(Network.trace(module, (example,)))
    assert sum(group.channels for group in found.free.values()) == sum(
        group.channels for group in analyse(traced).free.values()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3", "shufflenet_v2", "unet", "vit", "bert", "swin", "gru", "yolo"])
def test_architectures_of_the_zoo_come_back_from_their_files_with_the_same_channels(name, tmp_path):
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    traced = Network.trace(model, inputs)
    names = [f"in{index}" for index in range(len(inputs))]
    with torch.no_grad():
        outputs = torch.utils._pytree.tree_leaves(traced.eval_module(*traced.example_inputs))
    path = tmp_path / "file.onnx"
    export(
        traced.eval_module, traced.example_inputs, path, input_names=names,
        output_names=[f"out{index}" for index in range(len(outputs))], max_opset=18, max_ir=10,
    )  # fmt: skip
    module = to_module(onnx.load(path))
    values = [like(example, 3) for example in inputs]
    with torch.no_grad():
        found = torch.utils._pytree.tree_leaves(module(*values))
        expected = torch.utils._pytree.tree_leaves(traced.eval_module(*values))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    groups, before = analyse(Network.trace(module, inputs)), analyse(traced)
    assert not groups.without_rule
    assert sum(group.channels for group in groups.free.values()) == sum(
        group.channels for group in before.free.values()
    )


def test_a_file_of_an_old_operator_set_is_traced_and_pruned():
    module = to_module(onnx.load(LIGHT / "light_squeezenet.onnx"))
    for parameter in module.parameters():  # all of them are equal in these files
        nn.init.normal_(parameter, std=0.05)
    example = torch.randn(1, 3, 64, 64)
    network = Network.trace(module, (example,))
    groups = analyse(network)
    keep = {name: list(range(max(1, group.channels // 2))) for name, group in groups.free.items()}
    pruned = prune(network, groups, keep)
    assert len(groups.free) > 10
    assert verify_pruning(network, groups, keep, pruned, network.example_inputs) < PROOF_TOLERANCE


def a_model(nodes, inputs, outputs, arrays=None, opset=17) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(value, name) for name, value in (arrays or {}).items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def test_weights_keep_their_names_and_constants_are_not_trained():
    nodes = [
        helper.make_node("Conv", ["x", "stem.conv.weight", "onnx::Bias_12"], ["a"], auto_pad="SAME_UPPER"),
        helper.make_node("Mul", ["a", "training"], ["b"]),
        helper.make_node("Add", ["b", "mask"], ["y"]),
    ]
    arrays = {
        "stem.conv.weight": np.ones((4, 3, 2, 2), np.float32),
        "onnx::Bias_12": np.ones(4, np.float32),
        "training": np.full((1, 4, 1, 1), 2, np.float32),
        "mask": np.full((1, 1, 5, 5), -1e9, np.float32),
    }
    model = a_model(nodes, [value("x", ["n", 3, 5, 5])], [value("y", ["n", 4, 5, 5])], arrays)
    module = to_module(model)
    assert set(dict(module.named_parameters())) == {"stem.conv.weight", "onnx__Bias_12", "training_1"}
    assert list(dict(module.named_buffers())) == ["mask"]
    assert module(torch.zeros(3, 3, 5, 5)).shape == (3, 4, 5, 5)


def test_arithmetic_on_shapes_stays_dynamic_in_a_trace():
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "first"], ["row"]),
        helper.make_node("Concat", ["row", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    arrays = {
        "zero": np.array(0), "first": np.array([0]), "rest": np.array([-1]),
        "w": np.random.RandomState(0).normal(size=(12, 4)).astype(np.float32),
    }  # fmt: skip
    module = to_module(a_model(nodes, [value("x", ["n", 3, 4])], [value("y", ["n", 4])], arrays))
    network = Network.trace(module, (torch.randn(2, 3, 4),))
    assert not network.notes
    x = torch.randn(7, 3, 4)
    torch.testing.assert_close(network.eval_module(x), x.flatten(1) @ torch.from_numpy(arrays["w"]))


def test_a_recurrent_state_of_another_batch_than_the_input_is_refused():
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y"], name="lstm", hidden_size=3)]
    random = np.random.RandomState(0)
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in
              {"w": (1, 12, 2), "r": (1, 12, 3), "h": (1, 2, 3), "c": (1, 2, 3)}.items()}  # fmt: skip
    module = to_module(a_model(nodes, [value("x", [5, "n", 2])], [value("y", [5, 1, "n", 3])], arrays))
    assert module(torch.zeros(5, 2, 2)).shape == (5, 1, 2, 3)
    with pytest.raises(StepError, match="LSTM of node 'lstm' has an initial state for 2 samples, but gets 1"):
        module(torch.zeros(5, 1, 2))


def test_an_unknown_operator_is_refused_with_its_name_domain_and_node():
    node = helper.make_node("Magic", ["x"], ["y"], name="the_node", domain="com.acme")
    model = a_model([node], [value("x", ["n", 3])], [value("y", ["n", 3])])
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    with pytest.raises(StepError, match=r"operator com\.acme\.Magic of node 'the_node'"):
        to_module(model)


def test_a_size_that_depends_on_data_is_refused_with_its_node():
    nodes = [helper.make_node("Cast", ["k"], ["shape"], to=TensorProto.INT64), helper.make_node("Reshape", ["x", "shape"], ["y"], name="r")]  # fmt: skip # noqa: E501
    inputs = [value("x", ["n", 4]), value("k", [2], TensorProto.INT32)]
    module = to_module(a_model(nodes, inputs, [value("y", None)]))
    with pytest.raises(StepError, match="Reshape of node 'r' takes 'shape' from values that are computed from data"):
        module(torch.zeros(2, 4), torch.tensor([4, 2], dtype=torch.int32))


def test_statistics_of_batch_norm_move_in_training_and_stay_in_evaluation(tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)), "scale": np.ones(4), "bias": np.zeros(4),
        "mean": np.zeros(4), "variance": np.ones(4),
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "variance"], ["y"], momentum=0.8),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    module = to_module(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = 5 + torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = Network.trace(module, (x,))
    before = network.eval_module(x)
    network.train_module(x)
    mean = torch.conv2d(x, torch.from_numpy(weights["w"]).float()).mean((0, 2, 3))
    buffers = [value for _, value in network.eval_module.named_buffers() if value.shape == mean.shape]
    moved = [value for value in buffers if torch.allclose(value, 0.2 * mean, rtol=1e-4)]
    assert len(moved) == 1
    after = network.eval_module(x)
    assert not torch.allclose(after, before)
    assert torch.equal(network.eval_module(x), after)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_a_constant_number_may_be_either_operand_and_the_module_is_exported_again(shape, kind, tmp_path):
    operators = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Equal", "Less", "GreaterOrEqual", "Mod"]
    nodes = [
        helper.make_node(
            operator, ["x", "c"] if last else ["c", "x"], [f"{operator}{last}"],
            **({"fmod": 1} if operator == "Mod" and kind is np.float32 else {}),
        )
        for operator in operators
        for last in (0, 1)
    ]  # fmt: skip
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    outputs = [
        helper.make_tensor_value_info(
            node.output[0],
            onnx.TensorProto.BOOL if node.op_type in ("Equal", "Less", "GreaterOrEqual") else element,
            ["n", 5],
        )
        for node in nodes
    ]
    inputs = [helper.make_tensor_value_info("x", element, ["n", 5])]
    constant = numpy_helper.from_array(np.full(shape, 2, kind), "c")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = np.array([[1, 2, 3, 4, 5], [5, 4, 2, 2, 1]], kind)
    path = tmp_path / "again.onnx"
    example = torch.from_numpy(values)
    export(
        Network.trace(to_module(model), (example,)).eval_module, (example,), path, input_names=["x"],
        output_names=[node.output[0] for node in nodes], max_opset=18, max_ir=10,
    )  # fmt: skip
    expected, found = (
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": values})
        for content in (model.SerializeToString(), path.read_bytes())
    )
    for node, one, other in zip(nodes, expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, err_msg=node.output[0])


def test_paddings_that_are_computed_as_rows_of_two_from_sizes_are_known():
    """As TensorFlow's dilated convolutions pad to a multiple of the dilation: before and after of each dimension."""
    constants = {
        "two": np.array([2]), "one": np.array([1]), "start": np.array([2]), "end": np.array([4]), "zero": np.array([0]),
        "axis": np.array([0]), "nothing": np.zeros((1, 2), np.int64), "flat": np.array([-1]), "value": np.float32(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "start", "end"], ["sizes"]),
        helper.make_node("Mod", ["sizes", "two"], ["rest"]),
        helper.make_node("Sub", ["two", "rest"], ["missing"]),
        helper.make_node("Mod", ["missing", "two"], ["after"]),
        helper.make_node("Slice", ["after", "zero", "one"], ["high"]),
        helper.make_node("Slice", ["after", "one", "two"], ["wide"]),
        *[
            node
            for name in ("high", "wide")
            for node in (
                helper.make_node("Concat", ["zero", name], [f"{name}_pair"], axis=0),
                helper.make_node("Unsqueeze", [f"{name}_pair", "axis"], [f"{name}_row"]),
            )
        ],
        helper.make_node("Concat", ["nothing", "nothing", "high_row", "wide_row"], ["rows"], axis=0),
        helper.make_node("Transpose", ["rows"], ["turned"], perm=[1, 0]),
        helper.make_node("Reshape", ["turned", "flat"], ["pads"]),
        helper.make_node("Pad", ["x", "pads", "value"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "paddings",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, "H", "W"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = to_module(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for sizes in ((2, 3, 5, 8), (1, 3, 4, 7), (1, 3, 6, 6)):
        x = torch.randn(sizes)
        assert_same(module(x), torch.from_numpy(session.run(None, {"x": x.numpy()})[0]))

"""Tracing, training, saving and exporting a network as its graph."""

import copy
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from operator_networks import WritesBehindAView
from rule_networks import Formula
from torch import nn
from zoo_networks import random_keep, tensors_in, traced

from edgeopt.errors import DataError, StepError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.rewrite import prune
from edgeopt.tasks.networks.resnet import SmallResNet

FLOAT32_SUMS = 1e-5
"""Sums of some thousand float32 products, in another order."""


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SmallResNet(stem=8, widths=(8, 16), blocks=1)


def images(batch=4):
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_graph_computes_the_same_as_the_model_and_shares_no_tensors_with_it(model):
    network = Network.trace(model, (images(1),))
    with torch.no_grad():
        expected = model.eval()(images())
        assert torch.equal(network.eval_module(images()), expected)
        for tensor in network.state().values():
            tensor.zero_()
        assert torch.equal(model(images()), expected)


def test_tracing_keeps_the_training_mode_of_the_model(model):
    model.train()
    Network.trace(model, (images(1),))
    assert model.training


def test_names_are_those_of_the_model(model):
    network = Network.trace(model, (images(1),))
    unused = {name for name in model.state_dict() if name.endswith("num_batches_tracked")}
    assert set(network.state()) == set(model.state_dict()) - unused
    assert set(network.parameters()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_three_training_steps_have_the_same_effect_as_on_the_model(model, memory):
    network = Network.trace(model, (images(1),))
    model.train().to(memory_format=memory)
    network.train_module.to(memory_format=memory)
    for module in (model, network.train_module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(images(8).to(memory_format=memory)).square().mean().backward()
            optimizer.step()
    for name, tensor in network.state().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=FLOAT32_SUMS, rtol=FLOAT32_SUMS)
    with torch.no_grad():
        torch.testing.assert_close(
            network.eval_module(images()), model.eval()(images()), atol=FLOAT32_SUMS, rtol=FLOAT32_SUMS
        )


def test_dropout_is_active_only_in_training():
    network = Network.trace(nn.Sequential(nn.Linear(50, 50), nn.Dropout(0.5)), (torch.ones(1, 50),))
    with torch.no_grad():
        assert (network.train_module(torch.ones(2, 50)) == 0).any()
        assert not (network.eval_module(torch.ones(2, 50)) == 0).any()


def test_a_copy_has_its_own_tensors(model):
    network = Network.trace(model, (images(1),))
    other = network.copy()
    before = copy.deepcopy(network.state())
    for tensor in other.state().values():
        tensor.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state().items())
    shared = other.parameters()["head.weight"]
    assert dict(other.train_module.named_parameters())["head.weight"] is shared


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1, 4) if x.shape[0] == 2 else x.reshape(1, -1, 4)


class Deciding(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_a_model_with_a_fixed_batch_is_traced_with_it_and_a_note_says_so():
    network = Network.trace(FixedBatch(), (torch.randn(1, 8),))
    assert "fixed batch of 2" in network.notes[0]


def test_a_model_whose_control_flow_depends_on_values_is_refused_with_advice():
    with pytest.raises(StepError, match=r"torch.export cannot export Deciding: it branches .* torch.where") as caught:
        Network.trace(Deciding(), (torch.randn(1, 8),))
    assert caught.value.stage == "trace"
    assert caught.value.trace


class Packing(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 8, batch_first=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.gru(packed)[1][0]


def test_a_packed_sequence_is_refused_with_what_to_do_instead():
    with pytest.raises(StepError, match=r"packed sequence, which cannot be exported. Give the layer the padded"):
        Network.trace(Packing(), (torch.randn(2, 5, 4), torch.tensor([5, 3])))


def test_channels_last_memory_survives_saving(model, tmp_path):
    network = Network.trace(model, (images(1),))
    trained = network.copy()
    trained.train_module.to(memory_format=torch.channels_last)
    trained.save(tmp_path / "a.safetensors")
    back = Network.load(tmp_path / "a.safetensors", network)
    weight = back.state()["stages.0.conv2.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(back.eval_module(images()), trained.eval_module(images()))


def test_bad_files_are_refused(model, tmp_path):
    network = Network.trace(model, (images(1),))
    with pytest.raises(DataError, match="cannot be read"):
        Network.load(tmp_path / "missing.safetensors", network)
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        Network.load(tmp_path / "broken.safetensors", network)
    other, groups = traced("mlp")
    prune(other, groups, random_keep(groups, 0.5, seed=1)).save(tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="another model"):
        Network.load(tmp_path / "other.safetensors", network)


def check_onnx(network: Network, path, batch: int):
    inputs = tuple(torch.randn(batch, *tensor.shape[1:]) for tensor in network.example_inputs)
    model = onnx.load(path)
    feeds = {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, inputs, strict=True)}
    with torch.no_grad():
        expected = tensors_in(network.eval_module(*inputs))
    for found, tensor in zip(ReferenceEvaluator(model).run(None, feeds), expected, strict=True):
        np.testing.assert_allclose(found, tensor.numpy(), atol=FLOAT32_SUMS, rtol=FLOAT32_SUMS)


def test_the_dynamo_exporter_exports_a_pruned_network(tmp_path):
    network, groups = traced("two_heads")
    pruned = prune(network, groups, random_keep(groups, 0.5, seed=1))
    path = tmp_path / "dynamo.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            pruned.eval_module,
            pruned.example_inputs,
            path,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * 2,
            external_data=False,
            verbose=False,
        )
    check_onnx(pruned, path, batch=3)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "densenet", "unet", "two_heads"])
def test_the_torchscript_exporter_exports_a_pruned_network(name, tmp_path):
    network, groups = traced(name)
    pruned = prune(network, groups, random_keep(groups, 0.5, seed=1))
    path = tmp_path / "torchscript.onnx"
    names = [f"in{number}" for number in range(len(pruned.example_inputs))]
    outputs = [f"out{number}" for number in range(2 if name == "two_heads" else 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns that it is deprecated
        torch.onnx.export(
            pruned.eval_module,
            pruned.example_inputs,
            path,
            dynamo=False,
            input_names=names,
            output_names=outputs,
            dynamic_axes={axis: {0: "batch"} for axis in names},
            opset_version=17,
        )
    check_onnx(pruned, path, batch=3)


class Streaming(nn.Module):
    """One step of a stream: the state of a GRU, of shape (layers, batch, 12), is an input and an output."""

    def __init__(self):
        super().__init__()
        self.conv, self.gru, self.out = nn.Conv1d(1, 8, 4, 2), nn.GRU(8, 12, 2, batch_first=True), nn.Linear(12, 1)

    def forward(self, x, tail, state):
        x = torch.cat([tail, x], -1)
        y, state = self.gru(torch.relu(self.conv(x.unsqueeze(1))).transpose(1, 2), state)
        return self.out(y[:, -1]), x[:, -2:], state


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_batch_of_a_state_is_found_also_in_a_single_sample(batch):
    inputs = (torch.randn(batch, 32), torch.randn(batch, 2), torch.randn(2, batch, 12))
    network = Network.trace(Streaming(), inputs)
    assert network.notes == ()
    assert network.example_inputs[2].shape == (2, max(batch, 2), 12)
    outputs = network.eval_module(torch.randn(5, 32), torch.randn(5, 2), torch.randn(2, 5, 12))
    assert [tuple(output.shape) for output in outputs] == [(5, 1), (5, 2), (2, 5, 12)]


def test_a_network_in_its_models_memory_changes_nothing_of_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[2].weight.requires_grad_(False)
    x = torch.randn(4, 6)
    model.eval()
    before, expected = copy.deepcopy(model.state_dict()), model(x)
    network = Network.trace(model, (x,), share_tensors=True)
    torch.testing.assert_close(network.eval_module(x), expected)
    assert network.parameters()["2.weight"].data_ptr() == model[2].weight.data_ptr()
    assert network.parameters()["2.weight"].requires_grad
    assert not model[2].weight.requires_grad
    trained = network.copy()
    with torch.no_grad():
        for value in trained.parameters().values():
            value.add_(1.0)
    trained.train_module(x)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


class OwnSoftmax(torch.autograd.Function):
    """A softmax that is written to in place and has a gradient of its own, as DeBERTa's."""

    @staticmethod
    def forward(ctx, x, masked):
        y = torch.softmax(x, -1)
        y.masked_fill_(masked, 0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return y * (gradient - (gradient * y).sum(-1, keepdim=True)), None


class OwnGradient(nn.Module):
    """A layer, and the softmax."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)

    def forward(self, x):
        return OwnSoftmax.apply(self.a(x), x[..., :1] > 1)


def test_a_value_that_a_gradient_needs_is_not_written_over():
    torch.manual_seed(0)
    model, x = OwnGradient(), torch.randn(5, 6)
    network = Network.trace(model, (x,))
    torch.testing.assert_close(network.eval_module(x), model(x))
    network.train_module(x).square().sum().backward()
    assert float(network.parameters()["a.weight"].grad.abs().max()) > 0


class WithExtraTokens(nn.Module):
    """Tokens behind extra ones, of which there are none."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.extra = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.empty(1, 0, 8))

    def forward(self, x):
        return self.b(torch.cat([self.extra.expand(len(x), -1, -1), self.a(x)], 1))


def test_tensors_without_elements_are_left_out():
    model, x = WithExtraTokens().eval(), torch.randn(2, 5, 6)
    network = Network.trace(model, (x,))
    torch.testing.assert_close(network.eval_module(x), model(x))
    groups = analyse(network)
    assert {name: group.channels for name, group in groups.free.items()} == {"a": 8}


def test_a_view_shows_what_is_written_after_it():
    model, x = WritesBehindAView(), torch.randn(5, 6)
    torch.testing.assert_close(Network.trace(model, (x,)).eval_module(x), model(x))


class CountsItsCalls(nn.Module):
    """Its answer depends on how often it was called."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(6, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls


class RandomInEvaluation(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_attributes_that_calls_change_are_the_same_for_the_trace_and_for_the_comparison():
    model, x = CountsItsCalls(), torch.randn(5, 6)
    model(x)
    network = Network.trace(model, (x,))
    torch.testing.assert_close(network.eval_module(x), model(x))


def test_a_model_that_is_random_in_evaluation_is_not_compared_with_its_trace_and_a_note_says_so():
    notes = Network.trace(RandomInEvaluation(), (torch.randn(5, 6),)).notes
    assert any("could not be compared" in note for note in notes)


class HooksAtItsFirstCall(nn.Module):
    """Registers a hook when it is first called, and remembers that, as models of Hugging Face do for their outputs."""

    def __init__(self):
        super().__init__()
        self.linear, self.hooked, self.seen = nn.Linear(6, 6), False, []

    def forward(self, x):
        if not self.hooked:
            self.linear.register_forward_hook(lambda module, args, output: self.seen.append(output))
            self.hooked = True
        self.seen = []
        y = self.linear(x)
        return y + sum(self.seen)


def test_a_hook_that_the_first_call_registers_is_not_registered_twice():
    model, x = HooksAtItsFirstCall(), torch.randn(5, 6)
    network = Network.trace(model, (x,))
    torch.testing.assert_close(network.eval_module(x), model(x))


def test_a_model_that_cannot_be_compiled_is_traced_as_it_runs():
    """The encoder of Switch Transformers makes its mask only if nothing compiles it."""

    def compute(m, x):
        mask = None if torch.compiler.is_compiling() else torch.ones(x.shape[0], 5)
        return m.a(x * mask[:, :])

    x = torch.randn(2, 5)
    model = Formula(compute, {"a": nn.Linear(5, 3)})
    network = Network.trace(model, (x,))
    assert network.notes == ()
    assert torch.compiler.is_compiling() is False
    other = torch.randn(4, 5)
    torch.testing.assert_close(network.eval_module(other), model.eval()(other))

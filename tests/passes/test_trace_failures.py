"""Each kind of code that torch.export cannot record is refused in a sentence that says what to write instead."""

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.errors import StepError
from edgeopt.passes.network import Network
from edgeopt.pipeline.boundary import tell_apart

MAX_CHARACTERS = 600  # of a sentence; a graph has hundreds of lines


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)


class Branches(Layer):
    def forward(self, x):
        y = self.layer(x)
        return y if y.sum() > 0 else -y


class ChoosesModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"dark": nn.Linear(6, 6), "bright": nn.Linear(6, 6)})

    def forward(self, x):
        return self.parts["bright" if x.mean() > 0 else "dark"](x)


class Loops(Layer):
    def forward(self, x):
        y = self.layer(x)
        while y.norm() > 1:
            y = y * 0.5
        return y


class Repeats(Layer):
    def forward(self, x):
        y = self.layer(x)
        for index in range(int(x[0, 0])):
            y = y + index
        return y


class Slices(Layer):
    def forward(self, x):
        return self.layer(x)[:, : int(x.abs().max())]


class Prints(Layer):
    def forward(self, x):
        y = self.layer(x)
        print("largest", float(y.max()))
        return y


class Asserts(Layer):
    def forward(self, x):
        assert x.min() > -100, "out of range"
        return self.layer(x)


class Masks(Layer):
    def forward(self, x):
        y = self.layer(x)
        positive = y[y > 0]
        return y if positive.numel() == 0 else y + positive.mean()


class UsesNumpy(Layer):
    def forward(self, x):
        return torch.from_numpy(np.tanh(self.layer(x).detach().numpy()))


class ReadsNumpy(Layer):
    def forward(self, x):
        return self.layer(x) * float(np.mean(np.asarray(x)))


class TakesData(Layer):
    def forward(self, x):
        return self.layer(x).data.clone()


def as_script(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(value)


@as_script
def scripted(x: torch.Tensor) -> torch.Tensor:
    if bool(x.sum() > 0):
        return x
    return -x


class CallsScript(Layer):
    def forward(self, x):
        return scripted(self.layer(x))


class HoldsScript(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = as_script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))

    def forward(self, x):
        return self.layers(x)


class Differentiates(Layer):
    def forward(self, x):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            y = self.layer(x).sum()
        return torch.autograd.grad(y, x, create_graph=True)[0]


class Formats(Layer):
    def forward(self, x):
        y = self.layer(x)
        self.title = f"{y.mean():.2f}"
        return y


class Copies(Layer):
    def forward(self, x):
        return copy.deepcopy(self.layer)(x)


class ReturnsObject(Layer):
    def forward(self, x):
        return (value for value in (self.layer(x),))


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (Branches, r"it branches on the values of a tensor.* torch\.where\(condition, a, b\)"),
        (ChoosesModule, r"it branches on the values of a tensor.* torch\.where\(condition, a, b\)"),
        (CallsScript, r"it branches on the values of a tensor.* in scripted"),
        (Loops, r"it repeats a loop until values.* fixed number of turns"),
        (Repeats, r"it takes a number out of a tensor.* Use a size such as x\.shape\[1\]"),
        (Slices, r"it takes a number out of a tensor.* mask the rest"),
        (Prints, r"it takes a number out of a tensor"),
        (Asserts, r"it asserts something about the values.* leave the assertion out"),
        (Masks, r"the shape of a result depends on values.* torch\.where\(mask, x, 0\)"),
        (UsesNumpy, r"it turns a tensor into a NumPy array.* Use PyTorch's functions"),
        (ReadsNumpy, r"it turns a tensor into a NumPy array.* Use PyTorch's functions"),
        (TakesData, r"it makes a new tensor of computed values.* Use x\.detach\(\) for \.data"),
        (Differentiates, r"it computes gradients in forward\(\)"),
        (Formats, r"it takes a number out of a tensor"),
        (ReturnsObject, r"forward\(\) returns an object that is not made of tensors"),
        (Copies, r"Cannot access data pointer.*Write this step with PyTorch's operators on tensors"),
        (HoldsScript, r"it holds TorchScript.* Build the Python class"),
    ],
)
def test_code_that_cannot_be_recorded_is_refused_with_what_to_write_instead(kind, advice, capfd):
    with pytest.raises(StepError, match=rf"torch\.export cannot export {kind.__name__}: ") as caught:
        Network.trace(kind().eval(), (torch.randn(4, 6),))
    sentence = str(tell_apart("task.py:task", caught.value))
    assert re.search(advice, sentence), sentence
    assert len(sentence) < MAX_CHARACTERS
    if kind not in (TakesData, HoldsScript, Differentiates, ReturnsObject):
        assert "test_trace_failures.py, line " in sentence
    assert "torch.ops.aten" not in capfd.readouterr().err


class Decoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.decoder, self.options = nn.TransformerDecoder(layer, 1), options
        self.register_buffer("mask", torch.triu(torch.full((7, 7), float("-inf")), 1))

    def forward(self, x):
        return self.decoder(x, x, tgt_mask=self.mask, **self.options)


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.options = nn.TransformerEncoder(layer, 1), options
        self.register_buffer("mask", torch.triu(torch.full((7, 7), float("-inf")), 1))

    def forward(self, x):
        return self.encoder(x, mask=self.mask, **self.options)


@pytest.mark.parametrize(
    ("kind", "option"), [(Decoder, "tgt_is_causal"), (Encoder, "is_causal")], ids=["decoder", "encoder"]
)
def test_a_causal_mask_is_refused_with_the_argument_that_makes_it_pass(kind, option):
    inputs = (torch.randn(2, 7, 8),)
    with pytest.raises(StepError, match=rf"values of an attention mask .*{option}=True"):
        Network.trace(kind().eval(), inputs)
    model = kind(**{option: True}).eval()
    network = Network.trace(model, inputs)
    torch.testing.assert_close(network.eval_module(*inputs), model(*inputs))


class Streaming(nn.Module):
    """A recurrent layer whose state, of shape (layers, batch, hidden), is an input."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 8, batch_first=True)

    def forward(self, x, state):
        return self.gru(x, state)


def test_a_state_whose_batch_is_not_first_is_refused_with_the_member_that_says_so():
    inputs = torch.randn(1, 5, 6), torch.zeros(1, 1, 8)
    with pytest.raises(StepError, match=r"does not run on inputs of shape \(2, 5, 6\), \(2, 1, 8\).*batch_dim of the"):
        Network.trace(Streaming().eval(), inputs, [{0: "batch"}, {0: "batch"}])
    network = Network.trace(Streaming().eval(), inputs, [{0: "batch"}, {1: "batch"}])
    assert network.eval_module(torch.randn(3, 5, 6), torch.zeros(1, 3, 8))[1].shape == (1, 3, 8)


class DropsTheBatch(nn.Module):
    """Flattens everything, as networks that were only ever run on one sample do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, x):
        return self.layer(x.reshape(-1)).unsqueeze(0)


def test_a_network_for_one_sample_only_is_told_to_keep_its_batch():
    with pytest.raises(StepError, match=r"runs on one sample, but not on two of shape \(2, 3, 4\).*x\.flatten\(1\)"):
        Network.trace(DropsTheBatch(), (torch.randn(1, 3, 4),), ({0: "batch"},))

"""A gradient of a model's own, which a trace does not keep, is named; one that equals the operators' own is not."""

import pytest
import torch
from torch import nn

from edgeopt.passes.network import Network


class Binary(torch.autograd.Function):
    """A sign whose gradient passes straight through, as binary networks have."""

    @staticmethod
    def forward(ctx, x):
        return torch.sign(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Swish(torch.autograd.Function):
    """x * sigmoid(x) that keeps only x for its gradient, as EfficientNets have to save memory."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        [x] = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return gradient * gate * (1 + x * (1 - gate))


class BinaryLinear(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, Binary.apply(self.weight), self.bias)


class OwnSwish(nn.Module):
    def forward(self, x):
        return Swish.apply(x)


def test_a_gradient_of_the_models_own_is_named_with_the_parameters_that_get_another():
    torch.manual_seed(0)
    model = nn.Sequential(BinaryLinear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    [note] = Network.trace(model, (torch.randn(4, 6),)).notes
    assert note.startswith("Training differs from the model's own: ")
    assert "Binary" in note
    assert "0.weight" in note


def test_a_function_whose_gradient_is_that_of_its_operators_needs_no_note():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), OwnSwish(), nn.Linear(8, 3))
    assert Network.trace(model, (torch.randn(4, 6),)).notes == ()


class Forward(torch.autograd.Function):
    """A function for inference, which has no backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(0, 1)


class OnOtherProcessors(torch.autograd.Function):
    """A function whose backward is a kernel of another processor."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("expected a CUDA tensor")


class Step(Binary):
    """A step, whose operators have no gradient at all."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class DoubledInPlace(nn.Module):
    """Writes over what a gradient needs, so that it runs in evaluation only."""

    def forward(self, x):
        x = x.exp()
        x[:, :2] = 2 * x[:, :2]
        return x


@pytest.mark.parametrize(
    "parts", [(Applied(Forward),), (Applied(OnOtherProcessors),), (DoubledInPlace(), Applied(Binary))]
)
def test_a_model_that_has_no_gradient_here_is_traced_without_a_comparison(parts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), *parts, nn.Linear(8, 3))
    inputs = torch.randn(4, 6)
    network = Network.trace(model, (inputs,))
    assert torch.allclose(network.eval_module(inputs), model.eval()(inputs))
    assert not any("gradient of its own" in note for note in network.notes)


def test_a_last_step_without_a_gradient_in_the_trace_is_named_with_all_parameters_before_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), Applied(Step))
    [note] = [note for note in Network.trace(model, (torch.randn(4, 6),)).notes if "gradient of its own" in note]
    assert "Step" in note
    assert "0.weight" in note
    assert "2.weight" in note

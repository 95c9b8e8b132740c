"""A gradient of a model's own, which a trace does not keep, is named; one that equals the operators' own is not."""

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

import pytest
import torch
from operator_networks import WritesBehindAView
from torch import fx, nn

from edgeopt.errors import StepError
from edgeopt.passes.tracing import in_place
from edgeopt.passes.tracing import trace as tracing
from edgeopt.passes.tracing.check import compare_with_model


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x)


class ScaledByTheFirstBatch(Head):
    """What a trace that recorded a number of the examples computes."""

    def __init__(self, head, scale):
        super().__init__()
        self.linear, self.scale = head.linear, scale

    def forward(self, x):
        return self.linear(x) * self.scale


class ScaledByItsBatch(Head):
    def forward(self, x):
        return self.linear(x) * x.abs().max()


class RefusesOddBatches(Head):
    def forward(self, x):
        if x.shape[0] % 2:
            raise ValueError("frames come in pairs")
        return self.linear(x)


class OutputsInfinity(nn.Module):
    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        return torch.where(x > 0, x, self.sign * float("inf"))


def compare(model, other, x):
    return compare_with_model(
        model.eval(), fx.symbolic_trace(other.eval()), (x,), ({0: "batch"},), is_batch_dynamic=True
    )


def test_a_number_taken_from_the_examples_is_found_on_another_batch():
    model, x = ScaledByItsBatch(), torch.randn(4, 6)
    with pytest.raises(StepError, match=r"ScaledByItsBatch differs from it on another batch: output 0 is off by"):
        compare(model, ScaledByTheFirstBatch(model, float(x.abs().max())), x)


def test_an_operator_left_out_is_found_on_the_examples():
    model, x = ScaledByItsBatch(), torch.randn(4, 6)
    with pytest.raises(StepError, match="differs from it on the example inputs"):
        compare(model, ScaledByTheFirstBatch(model, 1.0), x)


def test_infinities_of_another_sign_are_found():
    with pytest.raises(StepError, match="other values that are not finite"):
        compare(OutputsInfinity(1.0), OutputsInfinity(-1.0), torch.randn(4, 6))
    assert compare(OutputsInfinity(-1.0), OutputsInfinity(-1.0), torch.randn(4, 6)) == ()


def test_a_batch_that_the_model_itself_refuses_is_left_out():
    model = RefusesOddBatches()
    same = ScaledByTheFirstBatch(model, 1.0)
    assert compare(model, same, torch.randn(4, 6)) == ()


def test_a_copy_that_breaks_a_view_is_found(monkeypatch):
    """The fault that this check was written for: with views taken for copies, the trace was silently old."""
    monkeypatch.setattr(in_place, "_is_alias", lambda node: False)
    with pytest.raises(StepError, match="WritesBehindAView differs from it on the example inputs"):
        tracing.trace(WritesBehindAView(), (torch.randn(5, 6),))


class NearestCode(nn.Module):
    """Looks up the nearest of two codes, both at nearly the same distance."""

    def __init__(self, shift):
        super().__init__()
        self.codes = nn.Parameter(torch.tensor([[0.0, 5.0], [2.0 + 1e-7, -5.0]]))
        self.shift = shift

    def forward(self, x):
        distance = ((x[:, None, :1] + self.shift - self.codes[:, :1] - self.shift) ** 2).sum(-1)
        return self.codes[distance.argmin(1)]


def test_a_choice_that_rounding_turned_is_no_error():
    """In float32, a large number that is added and taken away again rounds the distances to equal ones."""
    x = torch.ones(4, 2)
    model, other = NearestCode(0.0), NearestCode(4096.0)
    with torch.no_grad():
        other.codes.copy_(model.codes)
        model.codes[0, 0] -= 1e-4
        other.codes[0, 0] -= 1e-4
    assert not torch.equal(model(x), other(x))
    (note,) = compare(model, other, x)
    assert "differs from the model by rounding" in note

"""Composite operators without a rule are replaced by those that they consist of."""

import pytest
import torch
from rule_networks import Formula
from torch import nn
from torch.nn import functional as F

from edgeopt.passes.network import Network
from edgeopt.passes.tracing.composites import convolve_groups, grouped_products


def trace(compute, *inputs):
    parts = {"a": nn.Linear(5, 12), "table": torch.randn(8, 12)}
    model = Formula(compute, parts)
    return model, Network.trace(model, inputs)


def operators(network):
    return {
        node.target.overloadpacket.__name__
        for node in network.eval_module.graph.nodes
        if hasattr(node.target, "overloadpacket")
    }


def test_a_composite_operator_becomes_its_parts_and_computes_the_same_for_another_batch():
    x = torch.randn(4, 5)
    model, network = trace(
        lambda m, x: torch.tensordot(m.a(x), m.table, dims=([1], [1])) + torch.hstack([x, x])[:, :8], x
    )
    assert "tensordot" not in operators(network)
    assert "hstack" not in operators(network)
    assert network.notes == ()
    other = torch.randn(7, 5)
    torch.testing.assert_close(network.eval_module(other), model.eval()(other))


def test_sizes_and_constants_inside_are_those_of_the_operator():
    x = torch.randn(4, 5)
    model, network = trace(lambda m, x: m.a(x).quantile(0.3, 1) + F.one_hot(x[:, :1].long().abs() % 3, 3)[:, 0, 0], x)
    assert "quantile" not in operators(network)
    other = torch.randn(6, 5)
    torch.testing.assert_close(network.eval_module(other), model.eval()(other))


def test_several_results_find_their_readers():
    x = torch.randn(4, 5)
    model, network = trace(lambda m, x: [torch.add(*torch.meshgrid(m.a(x)[:, 0], x[0], indexing="ij")), m.a(x)], x)
    assert "meshgrid" not in operators(network)
    for found, expected in zip(network.eval_module(x), model.eval()(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_dropout_stays_because_it_acts_in_training():
    x = torch.randn(4, 5)
    _, network = trace(lambda m, x: F.feature_alpha_dropout(F.dropout(m.a(x)), 0.5), x)
    assert {"dropout", "feature_alpha_dropout"} & operators(network)
    torch.manual_seed(0)
    assert not torch.equal(network.train_module(x), network.eval_module(x))


def test_an_operator_with_a_rule_stays():
    _, network = trace(lambda m, x: F.cosine_similarity(m.a(x)[:, None], m.table, -1), torch.randn(4, 5))
    assert "cosine_similarity" in operators(network)


@pytest.mark.parametrize("rows", [7, 40])
def test_distances_are_written_with_operators_that_an_exporter_knows(rows):
    x = torch.randn(4, rows, 5)
    model, network = trace(lambda m, x: torch.cdist(m.a(x), m.table) + torch.cdist(m.a(x), m.table, p=1.0), x)
    assert "cdist" not in operators(network)
    assert "_cdist_forward" not in operators(network)
    other = torch.randn(3, rows, 5)
    torch.testing.assert_close(network.eval_module(other), model.eval()(other))
    y = torch.ones(2, rows, 5, requires_grad=True)
    _, alike = trace(lambda m, x: torch.cdist(m.a(x), m.a(x)), y.detach())
    alike.train_module(y).sum().backward()
    assert y.grad.isfinite().all()


@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_grouped_experts_become_operators_that_exporters_write(has_bias):
    rows, weights = torch.randn(7, 4), torch.randn(3, 4, 5)
    bias = torch.randn(3, 5) if has_bias else None
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)  # the second expert has no row, and the last row no expert
    expected = torch.zeros(7, 5)
    for expert, (start, end) in enumerate([(0, 2), (2, 2), (2, 6)]):
        expected[start:end] = rows[start:end] @ weights[expert] + (bias[expert] if has_bias else 0)
    torch.testing.assert_close(grouped_products(rows, weights, ends, bias), expected)


def convolve_each(kernels, x, **options):
    """Convolve each sample by a kernel of its own: the batch is folded into the groups."""
    batch, channels, height, width = x.shape
    out = kernels.shape[1]
    weight = kernels.reshape(batch * out, -1, *kernels.shape[-2:])
    groups = batch * channels // weight.shape[1]
    y = F.conv2d(x.reshape(1, batch * channels, height, width), weight, groups=groups, **options)
    return y.reshape(batch, out, *y.shape[2:])


@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"padding": (2, 1), "stride": (2, 1), "dilation": (1, 2)}])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_kernel_for_each_sample_becomes_products_of_matrices(options, depthwise):
    x = torch.randn(4, 3, 9, 8)
    parts = {"mix": nn.Linear(3, 3 * 9 if depthwise else 5 * 3 * 9)}

    def compute(m, x):
        kernels = m.mix(x.mean((2, 3)))
        sizes = (3, 1, 3, 3) if depthwise else (5, 3, 3, 3)
        return convolve_each(kernels.reshape(x.shape[0], *sizes), x, **options)

    model = Formula(compute, parts)
    network = Network.trace(model, (x,))
    assert network.notes == ()
    assert "conv2d" not in operators(network)
    other = torch.randn(7, 3, 9, 8)
    torch.testing.assert_close(network.eval_module.double()(other.double()), model.eval().double()(other.double()))


def test_a_kernel_over_time_for_each_sample_becomes_a_product_of_matrices():
    x = torch.randn(4, 3, 11)

    def compute(m, x):
        kernels = m.mix(x.mean(2)).reshape(x.shape[0] * 3, 1, 4)
        y = F.conv1d(x.reshape(1, -1, 11), kernels, padding="same", dilation=2, groups=x.shape[0] * 3)
        return y.reshape(x.shape)

    model = Formula(compute, {"mix": nn.Linear(3, 12)})
    network = Network.trace(model, (x,))
    assert network.notes == ()
    assert "conv1d" not in operators(network)
    other = torch.randn(7, 3, 11)
    torch.testing.assert_close(network.eval_module(other), model.eval()(other))


def test_a_computed_bias_and_the_channels_of_grouped_samples():
    x, weight, bias = torch.randn(1, 12, 7, 7), torch.randn(8, 3, 3, 2), torch.randn(8)
    for options in ({"padding": (1, 1)}, {"padding": "same", "dilation": (1, 2)}, {"padding": "valid"}):
        expected = F.conv2d(x, weight, bias, groups=4, **options)
        torch.testing.assert_close(convolve_groups(x, weight, bias, groups=4, **options), expected)

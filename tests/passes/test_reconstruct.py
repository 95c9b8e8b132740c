"""Weights that are fitted after a cut: what a layer reads, that a network comes closer, and what is left alone."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.reconstruct.fit import affordable_samples, reconstruct
from edgeopt.passes.reconstruct.layers import find_fittable_layers, input_rows, output_rows, position_sizes

LAYERS = {
    "plain": (nn.Conv2d(3, 8, 3), (4, 3, 9, 11)),
    "strides and paddings of two sizes": (
        nn.Conv2d(3, 8, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1), bias=False), (4, 3, 12, 9)
    ),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (4, 6, 7, 5)),
    "groups": (nn.Conv2d(6, 8, 3, stride=2, groups=2), (4, 6, 7, 8)),
    "over time": (nn.Conv1d(5, 6, 4, stride=2, padding=3, dilation=2), (4, 5, 21)),
    "linear": (nn.Linear(7, 4), (6, 7)),
    "linear over time": (nn.Linear(7, 4, bias=False), (3, 5, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_the_rows_that_a_layer_reads_times_its_weights_are_what_it_computes(name):
    module, shape = LAYERS[name]
    x = torch.randn(shape)
    network = Network.trace(module.eval(), (x,))
    (layer,) = find_fittable_layers(network.eval_module).values()
    output = network.eval_module(x)
    sizes = (output.shape[0], *output.shape[2:]) if layer.window else output.shape[:-1]
    assert position_sizes(layer, x) == tuple(sizes)
    positions = torch.randperm(len(output_rows(layer, output)))[:9]
    read = input_rows(layer, x, output.shape[2:] if layer.window else (), positions)
    weights = layer.weight.reshape(layer.groups, -1, read.shape[-1]).transpose(1, 2)
    found = (read @ weights).transpose(0, 1).flatten(1)
    found = found if layer.bias is None else found + layer.bias
    torch.testing.assert_close(found, output_rows(layer, output)[positions], rtol=1e-4, atol=1e-5)


class SmallNetwork(nn.Module):
    """Of convolutions with and without norms, a residual sum, and linear layers; channels repeat each other in part."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1, bias=False)
        self.middle, self.head = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = x + self.point(self.depthwise(x).relu())
        return self.head(self.middle(x.mean((2, 3))).relu())


def a_network(seed=0):
    torch.manual_seed(seed)
    module = SmallNetwork().train()
    with torch.no_grad():
        for _ in range(20):
            module(torch.randn(32, 3, 12, 10))
    return Network.trace(module.eval(), (torch.randn(2, 3, 12, 10),))


def cut_half(network):
    groups = analyse(network)
    keep = {name: range(0, group.channels, 2) for name, group in groups.groups.items() if group.frozen_by is None}
    return prune(network, groups, keep)


def error_of(network, original, x):
    with torch.no_grad():
        wanted = original.eval_module(x)
        return float((network.eval_module(x) - wanted).norm() / wanted.norm())


def test_a_cut_network_comes_closer_to_what_it_computed_on_inputs_that_did_not_fit_it():
    network = a_network()
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(64, 3, 12, 10, generator=generator),) for _ in range(6)]
    cut, other = cut_half(network), cut_half(network)
    before = error_of(cut, network, batches[-1][0])
    assert reconstruct(network, cut, batches[:5]) == 3  # the others lost no input
    assert error_of(cut, network, batches[-1][0]) < 0.4 * before
    for name, value in network.state().items():  # the original is only read
        assert torch.equal(value, a_network().state()[name]), name
    reconstruct(network, other, batches[:5])
    assert all(torch.equal(value, other.state()[name]) for name, value in cut.state().items())


def test_a_network_that_was_cut_before_is_the_measure_for_its_next_cut():
    network = cut_half(a_network())
    batches = [(torch.randn(64, 3, 12, 10),) for _ in range(5)]
    smaller = cut_half(network)
    before = error_of(smaller, network, batches[-1][0])
    reconstruct(network, smaller, batches[:4])
    assert error_of(smaller, network, batches[-1][0]) < 0.7 * before


def test_a_network_that_lost_nothing_stays_as_it_is_and_batches_may_have_any_size():
    network = a_network()
    whole = prune(network, analyse(network), {})
    assert reconstruct(network, whole, [(torch.randn(3, 3, 12, 10),), (torch.randn(5, 3, 12, 10),)]) == 0
    assert error_of(whole, network, torch.randn(4, 3, 12, 10)) < 1e-5
    assert torch.equal(whole.state()["head.weight"], network.state()["head.weight"])


def test_layers_that_share_a_weight_and_inputs_that_are_not_finite_stay_as_they_are():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.twice(self.first(x).relu()).relu()
            return self.last(self.twice(x).relu())

    network = Network.trace(Shared().eval(), (torch.randn(2, 6),))
    assert sorted(layer.weight_path for layer in find_fittable_layers(network.eval_module).values()) == [
        "first.weight", "last.weight"
    ]  # fmt: skip
    cut = cut_half(a_network())
    state = {name: value.clone() for name, value in cut.state().items()}
    assert reconstruct(a_network(), cut, [(torch.full((8, 3, 12, 10), torch.nan),)]) == 0
    assert all(torch.equal(value, state[name]) for name, value in cut.state().items())


def test_large_values_take_fewer_samples():
    network = a_network()  # its largest value has 16 channels of 6x5 positions
    assert affordable_samples(network, 100, examples=2) == 100
    assert affordable_samples(network, 10**7, examples=2) == 256_000_000 // (4 * 16 * 6 * 5)
    assert affordable_samples(network, 10**7, examples=2, larger=4.0) == 256_000_000 // (4 * 4 * 16 * 6 * 5)
    assert np.isfinite(error_of(network, network, torch.randn(2, 3, 12, 10)))


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("kernel", torch.full((4, 4), 0.25))

    def forward(self, x):
        x = self.last(self.first(x.sub_(1.0).div_(0.3)).relu())
        return nn.functional.linear(x, self.kernel)


class Drawing(Writing):
    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(hidden + torch.randn_like(hidden))


class Unbatched(Writing):
    def __init__(self):
        super().__init__()
        self.latent = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.last(self.first(x).relu()) + self.last.bias * self.first(self.latent).sum()


def test_models_that_write_into_their_inputs_are_fitted_on_what_they_were_given():
    torch.manual_seed(0)
    network = Network.trace(Writing().eval(), (torch.randn(2, 6),))
    cut, x = cut_half(network), torch.randn(400, 6)
    given = x.clone()
    before = error_of_clone(cut, network, given)
    assert reconstruct(network, cut, [(x,)]) == 1  # the first layer lost nothing, the kernel is a constant
    assert torch.equal(x, given)
    assert error_of_clone(cut, network, given) < before
    assert bool((cut.state()["kernel"] == 0.25).all())


def error_of_clone(network, original, x):
    with torch.no_grad():
        wanted = original.eval_module(x.clone())
        return float((network.eval_module(x.clone()) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", [Drawing, Unbatched])
def test_models_that_draw_numbers_or_run_without_a_batch_keep_a_cut_that_computes(kind):
    torch.manual_seed(0)
    network = Network.trace(kind().eval(), (torch.randn(2, 6),))
    cut = cut_half(network)
    state = {name: value.clone() for name, value in cut.state().items()}
    assert reconstruct(network, cut, [(torch.randn(64, 6),)]) == 0
    if kind is Drawing:
        assert all(torch.equal(value, state[name]) for name, value in cut.state().items())


def test_norms_compute_in_training_what_they_compute_in_inference_on_data_of_another_kind():
    network = a_network()
    batches = [(3 * torch.randn(128, 3, 12, 10) + 1,) for _ in range(4)]
    cut = cut_half(network)
    reconstruct(network, cut, batches)
    with torch.no_grad():
        (x,), wanted = batches[0], network.eval_module(batches[0][0])
        trained, evaluated = (
            float((run(x) - wanted).norm() / wanted.norm()) for run in (cut.train_module, cut.eval_module)
        )
    assert trained < 1.2 * evaluated + 0.02


class Mixing(nn.Module):
    """A layer over transposed values: what another layer loses as channels, it loses as positions."""

    def __init__(self):
        super().__init__()
        self.first, self.over_time, self.last = nn.Linear(6, 16), nn.Linear(5, 5), nn.Linear(16, 4)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(self.over_time(x.transpose(1, 2)).relu().transpose(1, 2))


def test_a_layer_whose_positions_were_cut_is_not_compared_with_others():
    torch.manual_seed(0)
    network = Network.trace(Mixing().eval(), (torch.randn(2, 5, 6),))
    cut, x = cut_half(network), torch.randn(300, 5, 6)
    state = {name: value.clone() for name, value in cut.state().items()}
    before = error_of(cut, network, x)
    assert reconstruct(network, cut, [(x,)]) == 1  # the last one
    assert error_of(cut, network, x) < before
    assert torch.equal(cut.state()["over_time.weight"], state["over_time.weight"])

"""Scores of channels, and the table that the search reads."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.errors import DivergedError, InputError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import choose_strongest, score_channels
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import build_group_table
from edgeopt.records.codec import from_json, to_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.recipe import Importance

TAYLOR = Importance(method="taylor")
FLOAT32_SUMS = 1e-5
"""Scores are sums of a few float32 products."""


def two_layers() -> tuple[Network, nn.Sequential]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return Network.trace(model, (torch.randn(2, 3),)), model


def slots(model, values=lambda tensor: tensor):
    """Return the rows of each slot of the middle channels: weight rows, bias entries, columns of the next weight."""
    return [values(model[0].weight), values(model[0].bias)[:, None], values(model[2].weight).T]


@pytest.mark.parametrize(("method", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize(("reduction", "reduce"), [("sum", sum), ("mean", lambda s: sum(s) / len(s)), ("max", None)])
def test_magnitudes_are_norms_of_slots_reduced_and_divided(method, power, reduction, reduce):
    network, model = two_layers()
    norms = [part.detach().abs().pow(power).sum(1).pow(1 / power) for part in slots(model)]
    expected = (reduce(norms) if reduce else torch.stack(norms).amax(0)).numpy()
    for normalization, scale in (("none", 1), ("mean", expected.mean()), ("max", expected.max())):
        rule = Importance(method=method, reduction=reduction, normalization=normalization)
        scores = score_channels(network, analyse(network), rule)
        np.testing.assert_allclose(scores["0"], expected / scale, rtol=FLOAT32_SUMS)


@pytest.mark.parametrize("method", ["gradient", "hessian"])
def test_gradient_methods_average_over_batches(method):
    network, model = two_layers()
    batches = [(torch.randn(5, 3), torch.randint(2, (5,))) for _ in range(3)]
    loss = nn.functional.cross_entropy
    expected = np.zeros(4)
    for inputs, targets in batches:
        model.zero_grad()
        loss(model(inputs), targets).backward()
        if method == "gradient":
            parts = slots(model, lambda weight: weight.grad.abs())
        else:
            parts = slots(model, lambda weight: weight.grad.square() * weight.detach().square() / 2)
        expected += sum(part.sum(1) for part in parts).numpy() / 3
    scores = score_channels(network, analyse(network), Importance(method=method), batches, loss)["0"]
    np.testing.assert_allclose(scores, expected, rtol=FLOAT32_SUMS, atol=FLOAT32_SUMS)


def test_activation_multiplies_a_channels_activation_by_the_weights_that_read_it():
    network, model = two_layers()
    inputs = torch.randn(9, 3)
    activation = model[:2](inputs).square().sum(0).sqrt()
    expected = (activation * model[2].weight.square().sum(0).sqrt()).detach().numpy()
    rule = Importance(method="activation")
    batches = [(inputs[:4], torch.zeros(4)), (inputs[4:], torch.zeros(5))]
    scores = score_channels(network, analyse(network), rule, batches, nn.functional.mse_loss)["0"]
    np.testing.assert_allclose(scores, expected, rtol=FLOAT32_SUMS, atol=FLOAT32_SUMS)


def test_activation_adds_up_the_groups_of_a_grouped_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 2, 1)).eval()
    inputs = torch.randn(5, 3, 4, 4)
    network = Network.trace(model, (inputs,))
    activation = model[:2](inputs).square().sum((0, 2, 3)).reshape(2, 2).sum(0).sqrt()
    weights = model[2].weight.square().sum((0, 2, 3)).sqrt()
    groups = analyse(network)
    scores = score_channels(
        network, groups, Importance(method="activation"), [(inputs, torch.zeros(5))], nn.functional.mse_loss
    )
    np.testing.assert_allclose(scores["0"], (activation * weights).detach().numpy(), rtol=FLOAT32_SUMS)


def test_batch_norm_scores_by_its_scales_and_groups_without_one_by_norms():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
    network = Network.trace(model, (torch.randn(2, 1, 4, 4),))
    groups = analyse(network)
    scores = score_channels(network, groups, Importance(method="batch-norm"))
    np.testing.assert_allclose(scores["0"], [0.5, 2.0, 1.0])
    np.testing.assert_allclose(scores["2"], score_channels(network, groups, Importance(method="l2"))["2"])


def test_random_is_the_same_each_time_and_differs_between_groups():
    network, _ = two_layers()
    groups = analyse(network)
    first, again = (score_channels(network, groups, Importance(method="random"))["0"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(set(first)) == 4


def test_taylor_adds_up_slots_and_averages_absolute_values_over_batches():
    network, model = two_layers()
    batches = [(torch.randn(5, 3), torch.randint(2, (5,))) for _ in range(3)]
    loss = nn.functional.cross_entropy
    scores = score_channels(network, analyse(network), TAYLOR, batches, loss)["0"]
    expected = np.zeros(4)
    for inputs, targets in batches:
        model.zero_grad()
        loss(model(inputs), targets).backward()
        slots = [
            (model[0].weight * model[0].weight.grad).sum(1),
            model[0].bias * model[0].bias.grad,
            (model[2].weight * model[2].weight.grad).sum(0),
        ]
        expected += sum(slot.abs().detach().numpy() for slot in slots) / 3
    np.testing.assert_allclose(scores, expected, rtol=FLOAT32_SUMS, atol=FLOAT32_SUMS)


def test_taylor_scores_zero_for_a_channel_that_the_output_does_not_need():
    network, _ = two_layers()
    with torch.no_grad():
        network.parameters()["2.weight"][:, 1] = 0
    batches = [(torch.randn(8, 3), torch.randn(8, 2))]
    scores = score_channels(network, analyse(network), TAYLOR, batches, nn.functional.mse_loss)["0"]
    assert scores.argmin() == 1
    assert scores[1] == 0
    assert all(parameter.grad is None for parameter in network.parameters().values())


def test_taylor_needs_batches_and_finite_gradients():
    network, _ = two_layers()
    groups = analyse(network)
    with pytest.raises(InputError, match="needs training batches"):
        score_channels(network, groups, TAYLOR)
    with pytest.raises(InputError, match="no batches"):
        score_channels(network, groups, TAYLOR, [], nn.functional.mse_loss)
    with pytest.raises(DivergedError):
        score_channels(
            network, groups, TAYLOR, [(torch.full((2, 3), torch.nan), torch.zeros(2, 2))], nn.functional.mse_loss
        )


def test_the_strongest_channels_are_kept_in_their_order():
    assert choose_strongest({"a": [0.5, 2.0, 1.0, 2.0]}, {"a": 2}) == {"a": [1, 3]}
    assert choose_strongest({"a": [1.0, 1.0, 1.0]}, {"a": 2}) == {"a": [0, 1]}


def test_the_table_survives_json_and_matches_counts_by_hand():
    network, _ = two_layers()
    groups = analyse(network)
    scores = score_channels(network, groups, Importance(method="l1"))
    table = from_json(to_json(build_group_table(network, groups, scores)), GroupTable)
    assert [group.name for group in table.free] == ["0"]
    assert table.free[0].importance == tuple(scores["0"])
    assert table.parameters({}) == 4 * 3 + 4 + 2 * 4 + 2
    assert table.parameters({"0": 3}) == 3 * 3 + 3 + 2 * 3 + 2
    assert table.macs({"0": 3}) == 3 * 3 + 2 * 3
    smaller = prune(network, groups, choose_strongest(scores, {"0": 3}))
    assert sum(parameter.numel() for parameter in smaller.parameters().values()) == table.parameters({"0": 3})


def test_a_network_in_which_nothing_can_go_has_no_scores():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.layer(x)

    network = Network.trace(Skip(), (torch.randn(2, 4),))
    batches = [(torch.randn(2, 4), torch.randn(2, 4))]
    assert score_channels(network, analyse(network), TAYLOR, batches, nn.functional.mse_loss) == {}


class FixedWaves(nn.Module):
    """The energy of waves in bands, neither of them a parameter, as in the front end of a speech network."""

    def __init__(self):
        super().__init__()
        steps = torch.arange(16) * torch.tensor([[1.0], [2.0], [3.0], [5.0]]) * torch.pi / 8
        self.register_buffer("waves", steps.sin()[:, None])
        self.register_buffer("bands", torch.tensor([[1.0, 1, 0.5, 0.5], [0.5, 0.5, 1, 1]])[..., None])
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        energy = nn.functional.conv1d(x, self.waves, stride=16).square()
        return self.head(nn.functional.conv1d(energy, self.bands).mean(-1))


@pytest.mark.parametrize("method", ["taylor", "gradient", "hessian", "l1"])
def test_channels_of_buffers_have_a_score_of_their_own(method):
    torch.manual_seed(0)
    model = FixedWaves()
    with torch.no_grad():
        model.waves[3] *= 0.01  # hardly heard
    x = torch.randn(32, 1, 64)
    network = Network.trace(model, (x,))
    batches = [(x, torch.randint(2, (32,)))]
    groups = analyse(network)
    name = next(name for name in groups.free if "waves" in name)
    scores = score_channels(network, groups, Importance(method=method), batches, nn.functional.cross_entropy)[name]
    assert (scores > 0).all()
    assert scores[3] < (1 if method == "l1" else 0.2) * max(scores[:3])
    assert not network.eval_module.waves.requires_grad

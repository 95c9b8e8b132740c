"""Tests of the pure parts of ``benchmarks/depth.py``, and of what its part on the zoo calls residual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.depth import METHODS, compute_figures, without_depth
from benchmarks.depth_zoo import compute_zoo_figures, repeats_layers, residual_sums
from edgeopt.passes.network import Network
from edgeopt.planning.width_rules import least_widths, protected_branches
from edgeopt.records.groups import Branch, ChannelGroup, Dimension, GroupTable, WeightShape


def _choice(method: str, latency: float | None, *networks: tuple[int, float]) -> dict[str, Any]:
    """Return a row with a network for each seed, given by its bytes and score."""
    found = [{"seed": seed, "size_bytes": size, "score": score} for seed, (size, score) in enumerate(networks)]
    return {"method": method, "networks": found} | ({} if latency is None else {"latency_ratio": latency})


def _family(saved: float, seeds: int = 3) -> list[dict[str, Any]]:
    """Return the rows of a network whose files with depth need ``saved`` times the cost of the others."""
    rows = []
    for cost, score in ((0.2, 0.8), (0.4, 0.9)):
        networks = [(cost * 1000, score + 0.001 * seed) for seed in range(seeds)]
        ours = [(saved * size, value) for size, value in networks]
        rows += [_choice(METHODS[0], saved * cost, *ours), _choice(METHODS[1], cost, *networks)]
    return rows


def test_the_network_that_gains_least_is_the_claim() -> None:
    figures = compute_figures({"residual": _family(0.7), "depthwise": _family(0.8)}, ())
    assert figures["latency_ratio_to_width_only_at_equal_score"] == pytest.approx(0.8)
    assert figures["bytes_ratio_to_width_only_at_equal_score"] == pytest.approx(0.8)
    assert figures["residual_bytes_ratio"] == pytest.approx((0.7, 0.7, 0.7))
    assert figures["seeds"] == {"residual": 3, "depthwise": 3}


def test_one_seed_has_a_ratio_without_an_interval() -> None:
    assert compute_figures({"segmentation": _family(0.8, seeds=1)}, ())["segmentation_latency_ratio"] == (
        pytest.approx(0.8), None, None,
    )  # fmt: skip


def test_before_anything_is_timed_there_are_bytes_but_no_latency() -> None:
    rows = [{key: value for key, value in row.items() if key != "latency_ratio"} for row in _family(0.8)]
    figures = compute_figures({"residual": rows}, ())
    assert figures["latency_ratio_to_width_only_at_equal_score"] is None
    assert figures["bytes_ratio_to_width_only_at_equal_score"] == pytest.approx(0.8)


def test_a_failed_training_is_no_point_of_a_curve() -> None:
    rows = _family(0.8, seeds=1)
    rows[0]["networks"] = [{"seed": 0, "sha256": None, "failure": "it diverged"}]
    rows[2]["networks"] = [{"seed": 0, "sha256": None, "failure": "it diverged"}]
    assert compute_figures({"residual": rows}, ())["residual_bytes_ratio"] is None


def test_rules_without_depth_protect_every_branch_and_leave_widths_alone() -> None:
    dims = (Dimension(fixed=0, per_channel={"a": 1}), Dimension(fixed=9, per_channel={}))
    weight = WeightShape(name="one.weight", dims=dims, macs_per_weight=1, values_per_weight=0, output_dim=0)
    group = ChannelGroup(name="a", channels=16, importance=(1.0,) * 16, frozen_by=None)
    branch = Branch(name="one", groups=("a",), tensors=("one.weight",), loss=0.1, half_loss=0.1)
    table = GroupTable(groups=(group,), tensors=(weight,), branches=(branch,))
    rules = without_depth(table)
    assert protected_branches(table, rules) == {"one"}
    assert least_widths(table, rules) == {"a": 1}


class _Skips(nn.Module):
    """Sums of several kinds; only the first adds a value to what a layer makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.relu(self.first(x))
        y = self.second(x) + self.third(x)  # neither is made of the other
        return y + torch.relu(y) + 1.0  # by no layer


def test_a_sum_is_residual_if_a_layer_makes_one_operand_of_the_other() -> None:
    network = Network.trace(_Skips().eval(), (torch.randn(2, 4),))
    assert len(residual_sums(network.eval_module, network.shapes())) == 1
    assert not repeats_layers(network.eval_module)


class _Steps(nn.Module):
    """The same layer in two steps, as a solver uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + torch.tanh(self.layer(x))
        return x


def test_steps_of_a_solver_are_residual_but_repeat_their_layers() -> None:
    network = Network.trace(_Steps().eval(), (torch.randn(2, 4),))
    assert len(residual_sums(network.eval_module, network.shapes())) == 2
    assert repeats_layers(network.eval_module)
    assert not network.branches()


def test_residual_architectures_that_offer_nothing_are_named() -> None:
    rows = [
        {
            "name": name,
            "failure": None,
            "residual_sums": sums,
            "repeats_layers": name == "c",
            "found": offered,
            "offered": offered,
        }
        for name, sums, offered in (("a", 2, ["x", "y"]), ("b", 2, ["x"]), ("c", 1, []), ("d", 0, []))
    ]
    figures = compute_zoo_figures(rows)
    assert (figures["zoo_residual"], figures["zoo_offering_branches"]) == (3, 2)
    assert figures["zoo_offering_none"] == {"c": "its layers are used several times"}
    assert figures["zoo_offering_fewer"] == {"b": [1, 2]}
    assert compute_zoo_figures([]) == {}

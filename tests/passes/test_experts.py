"""Experts go whole: the router is one over the experts that are left, and routing statistics say which stay."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.zoo.fresh.sequences import mixture_of_experts
from edgeopt.errors import InputError, ParityError
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import choose_strongest, score_channels
from edgeopt.passes.prune.proof import PROOF_TOLERANCE, verify_pruning
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import build_group_table
from edgeopt.planning.width_rules import least_widths
from edgeopt.planning.widths import allocate
from edgeopt.records.recipe import Importance
from edgeopt.records.width_rules import WidthRules

EXPERTS, WIDTH, WIDE, PICKED = 6, 10, 12, 2


class Experts(nn.Module):
    """Stacked experts; ``hidden`` logits stand for lost experts, whose weight has to be that of minus infinity."""

    def __init__(self):
        super().__init__()
        self.router, self.out = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        self.w1 = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDE))
        self.w2 = nn.Parameter(torch.randn(EXPERTS, WIDE, WIDTH))
        self.hidden = None

    def logits(self, x):
        logits = self.router(x)
        return logits if self.hidden is None else logits.index_fill(-1, self.hidden, -torch.inf)

    def mix(self, x, weights):
        h = torch.einsum("td,edh->teh", x, self.w1).relu()
        return self.out(torch.einsum("teh,ehd,te->td", h, self.w2, weights))


class Dense(Experts):
    def forward(self, x):
        return self.mix(x, self.logits(x).softmax(-1))


class TopOfLogits(Experts):
    def forward(self, x):
        logits = self.logits(x)
        top, index = torch.topk(logits, PICKED, dim=-1)
        return self.mix(x, torch.zeros_like(logits).scatter_(-1, index, top.softmax(-1)))


class TopOfShares(Experts):
    def forward(self, x):
        shares = self.logits(x).softmax(-1)
        top, index = shares.topk(PICKED)
        return self.mix(x, torch.zeros_like(shares).scatter(-1, index, top / top.sum(-1, keepdim=True)))


class Threshold(Experts):
    def forward(self, x):
        logits = self.logits(x)
        least = torch.topk(logits, PICKED)[0][..., -1:]
        return self.mix(x, logits.masked_fill(logits < least, -torch.inf).softmax(-1))


class Gathered(Experts):
    """Sigmoid routing: the best are picked with a bias, and weigh without it (as in DeepSeek-V3)."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(EXPERTS))

    def forward(self, x):
        logits = self.logits(x)
        shares = logits.sigmoid()
        index = (logits + self.bias).topk(PICKED)[1]
        return self.mix(x, torch.zeros_like(shares).scatter(-1, index, shares.gather(-1, index)))


class Routed(Experts):
    """The weights of the picked experts are looked up, as Hugging Face's batched experts do."""

    def forward(self, x):
        top, index = self.logits(x).softmax(-1).topk(PICKED)
        flat = index.reshape(-1)
        each = x.unsqueeze(1).expand(-1, PICKED, -1).reshape(-1, 1, WIDTH)
        y = torch.bmm(torch.bmm(each, self.w1[flat]).relu(), self.w2[flat])
        return self.out((y.reshape(-1, PICKED, WIDTH) * top.unsqueeze(-1)).sum(1))


FORMS = (Dense, TopOfLogits, TopOfShares, Threshold, Gathered, Routed)


def traced(form):
    torch.manual_seed(0)
    module, x = form(), torch.randn(48, WIDTH)
    network = Network.trace(module, (x,))
    return module, x, network, analyse(network)


def experts_of(groups):
    (name,) = [name for name, group in groups.free.items() if ("router.weight", 0) in group.slots]
    assert {slot[0] for slot in groups.free[name].slots} >= {"router.weight", "router.bias", "w1", "w2"}
    return name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [(1, 3, 4), (0, 5), (1, 2, 3, 4, 5)])
def test_lost_experts_have_a_logit_of_minus_infinity(form, kept):
    module, x, network, groups = traced(form)
    keep = {experts_of(groups): kept}
    pruned = prune(network, groups, keep)
    assert pruned.parameters()["w1"].shape == (len(kept), WIDTH, WIDE)
    assert pruned.parameters()["router.weight"].shape == (len(kept), WIDTH)
    assert verify_pruning(network, groups, keep, pruned, (x,)) < PROOF_TOLERANCE
    module.hidden = torch.tensor([expert for expert in range(EXPERTS) if expert not in kept])  # not what the proof ran
    x = torch.randn(30, WIDTH, dtype=torch.float64)
    difference = module.double()(x) - pruned.eval_module.double()(x)
    assert difference.abs().max() < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_the_proof_finds_an_expert_that_was_swapped(form):
    _, x, network, groups = traced(form)
    name = experts_of(groups)
    group = groups.groups[name]
    for slot in group.slots:
        indices = group.slots[slot].copy()
        indices[[1, 2]] = indices[[2, 1]]
        faulty = dataclasses.replace(group, slots={**group.slots, slot: indices})
        wrong = dataclasses.replace(groups, groups={**groups.groups, name: faulty})
        keep = {name: (0, 1, 4)}
        with pytest.raises(ParityError):
            verify_pruning(network, wrong, keep, prune(network, wrong, keep), (x,))


@pytest.mark.parametrize("form", FORMS)
def test_as_many_experts_stay_as_are_picked(form):
    _, _, network, groups = traced(form)
    name = experts_of(groups)
    least = 1 if form is Dense else PICKED
    assert groups.groups[name].least == least
    table = build_group_table(network, groups, {group: np.ones(one.channels) for group, one in groups.free.items()})
    widths = allocate(
        table, 8, None, max_parameters=1, max_latency_ratio=None, least=least_widths(table, WidthRules())
    ).widths
    assert widths[name] >= least
    if least > 1:
        with pytest.raises(InputError, match="keeps at least 2 channels: as many of them are picked"):
            prune(network, groups, {name: (3,)})


@pytest.mark.parametrize("form", FORMS)
def test_experts_that_get_little_go_first(form):
    _, x, network, groups = traced(form)
    with torch.no_grad():
        network.parameters()["router.bias"].copy_(torch.tensor([0.0, -9.0, 0.3, 0.0, -8.0, 0.3]))
    name = experts_of(groups)
    scores = score_channels(network, groups, Importance(), [((x,), None)], lambda outputs, _: outputs.square().mean())
    assert choose_strongest(scores, {name: 4})[name] == [0, 2, 3, 5]


class Positions(Experts):
    """Positions are computed with: they would be other numbers."""

    def forward(self, x):
        top, index = self.logits(x).topk(PICKED)
        return self.out(x * (index == 3).sum(-1, keepdim=True) * top.sum(-1, keepdim=True))


class Sorted(Experts):
    """Positions are put into another order before they are used."""

    def forward(self, x):
        top, index = self.logits(x).topk(PICKED)
        index = index.gather(-1, top.argsort(-1))
        return self.mix(x, torch.zeros(x.shape[0], EXPERTS).scatter(-1, index, top))


class Returned(Experts):
    def forward(self, x):
        return self.logits(x).topk(PICKED)[1], self.out(x)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Positions, "positions of these channels"),
        (Sorted, "positions of these channels"),
        (Returned, "model's output"),
    ],
)
def test_experts_stay_if_their_positions_are_used_otherwise(form, reason):
    _, _, _, groups = traced(form)
    frozen = [group for group in groups.groups.values() if ("router.weight", 0) in group.slots]
    assert all(reason in str(group.frozen_by) for group in frozen)


def test_stacked_experts_of_the_zoo_go_whole_and_those_of_a_list_stay():
    torch.manual_seed(0)
    module, inputs = mixture_of_experts()
    network = Network.trace(module, inputs)
    groups = analyse(network)
    (name,) = [name for name, group in groups.free.items() if ("mixers.0.router.weight", 0) in group.slots]
    assert {("mixers.0.w1", 0), ("mixers.0.w2", 0)} < set(groups.free[name].slots)
    assert groups.free[name].least == 2
    assert not any(("mixers.1.gate.weight", 0) in group.slots for group in groups.free.values())
    keep = {name: (0, 2, 3)}
    assert verify_pruning(network, groups, keep, prune(network, groups, keep), inputs) < PROOF_TOLERANCE

"""The newer part of the zoo: every network is what a user could have written, apart from what edgeopt makes of it."""

import pytest
import torch

from benchmarks.coverage_worker import build_network, find_channel_slots, flatten_outputs, make_random_input
from benchmarks.zoo.fresh import FRESH


@pytest.mark.parametrize("name", FRESH)
def test_each_network_runs_and_its_samples_do_not_depend_on_each_other(name):
    torch.manual_seed(0)
    model, inputs = build_network(FRESH[name])
    three = tuple(make_random_input(x, 3) for x in inputs)
    with torch.no_grad():
        together = [x for x in flatten_outputs(model(*three)) if x.is_floating_point()]
        first_two = [x for x in flatten_outputs(model(*(x[:2] for x in three))) if x.is_floating_point()]
    for all_samples, fewer in zip(together, first_two, strict=True):
        assert bool(all_samples.isfinite().all())
        assert float(all_samples.std()) > 1e-4, "a constant output would hide errors"
        batch = 0 if all_samples.shape[0] == 3 else 1  # recurrent text recognition puts time first
        torch.testing.assert_close(all_samples.narrow(batch, 0, 2), fewer, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FRESH)
def test_its_fixed_outputs_are_layers_and_others_are_left_to_prune(name):
    model, _ = FRESH[name].build()
    assert all(isinstance(model.get_submodule(layer).weight, torch.Tensor) for layer in FRESH[name].outputs)
    assert find_channel_slots(model, FRESH[name].outputs)

"""The coverage benchmark: which results pass, and which channels count."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.coverage import compute_figures, find_shortfall, is_silent_no_op
from benchmarks.coverage_worker import count_channels, find_channel_slots
from benchmarks.zoo import ARCHITECTURES

ROOT = Path(__file__).parents[2]


def a_sample(name: str = "net", tool: str = "edgeopt", blocked_by: tuple[str, ...] = (), **changes: object) -> dict:
    row = {
        "asked_ratio": 0.3, "removed_ratio": 0.3, "reached": 1.0, "proof_error": 1e-15, "exporter": "torchscript",
        "training_refusal": "", "export_refusal": "",
    }  # fmt: skip
    return {
        "name": name, "tool": tool, "failure": None, "common": {"blocked_by": list(blocked_by)},
        "rows": [row, row | changes],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (a_sample(), ""),
        (a_sample(reached=0.89), "0.89 of the requested reduction"),
        (a_sample(proof_error=1e-3), "not exact"),
        (a_sample(proof_error=None, proof_refusal="node 'add'"), "node 'add'"),
        (a_sample(training_refusal="the loss is not finite"), "not finite"),
        (a_sample(exporter=None, export_refusal="torchscript: no"), "torchscript: no"),
        (a_sample(blocked_by=("aten.gru",)), "no rule for aten.gru"),
        (a_sample(tool="torch_pruning", proof_error=None), ""),
        (a_sample(tool="torch_pruning", outputs_keep_their_shape=False), "outputs were pruned"),
    ],
)
def test_a_network_passes_if_enough_is_removed_exactly_and_it_trains_and_exports(sample, reason):
    assert bool(find_shortfall(sample)) == bool(reason)
    assert reason in find_shortfall(sample)


def test_removing_nothing_is_silent_unless_an_operator_is_named():
    assert is_silent_no_op(a_sample(removed_ratio=0.0))
    assert not is_silent_no_op(a_sample(removed_ratio=0.0, blocked_by=("aten.gru",)))
    assert not is_silent_no_op(a_sample())


def test_figures_name_the_networks_that_only_torch_pruning_handles():
    samples = [
        a_sample("a"),
        a_sample("b", reached=0.1),
        a_sample("a", "torch_pruning"),
        a_sample("b", "torch_pruning"),
    ]
    figures = compute_figures(samples)
    assert figures["architectures"] == 2
    assert (figures["pass_ratio"], figures["torch_pruning_pass_ratio"]) == (0.5, 1.0)
    assert figures["handled_by_torch_pruning_alone"] == ["b"]
    assert list(figures["short"]) == ["b"]


class MixedLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight
        self.up, self.norm = nn.ConvTranspose2d(4, 8, 2), nn.BatchNorm2d(8)
        self.gru, self.table, self.out = nn.GRU(6, 5), nn.Parameter(torch.zeros(3, 3)), nn.Linear(5, 7)


def test_channels_are_the_outputs_of_all_layers_that_are_not_fixed():
    model = MixedLayers()
    slots = find_channel_slots(model, ("out",))
    assert slots == {
        ("embed.weight", "head.weight"): 1, ("up.weight",): 1, ("gru.weight_ih_l0",): 0, ("gru.weight_hh_l0",): 0,
    }  # fmt: skip
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert count_channels(slots, shapes) == 6 + 8 + 15 + 15


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_fixed_outputs_in_the_zoo_are_layers_of_the_network(name):
    architecture = ARCHITECTURES[name]
    model, _ = architecture.build()
    assert all(isinstance(model.get_submodule(layer).weight, nn.Parameter) for layer in architecture.outputs)
    assert find_channel_slots(model, architecture.outputs)


def test_importing_the_zoo_does_not_import_transformers():
    code = "import sys, benchmarks.zoo, benchmarks.zoo.hugging_face; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

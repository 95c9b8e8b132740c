"""What counts as a pass of the coverage benchmark, and what a channel is there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.coverage import figures, shortfall, silent_no_op
from benchmarks.coverage_worker import channel_slots, channels
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
        (a_sample(reached=0.89), "0.89 of the reduction"),
        (a_sample(proof_error=1e-3), "not exact"),
        (a_sample(proof_error=None, proof_refusal="node 'add'"), "node 'add'"),
        (a_sample(training_refusal="the loss is not finite"), "not finite"),
        (a_sample(exporter=None, export_refusal="torchscript: no"), "torchscript: no"),
        (a_sample(blocked_by=("aten.gru",)), "no rule for aten.gru"),
        (a_sample(tool="torch_pruning", proof_error=None), ""),
        (a_sample(tool="torch_pruning", outputs_keep_their_shape=False), "outputs were pruned"),
    ],
)
def test_a_pass_is_enough_exact_trained_and_exported(sample, reason):
    assert bool(shortfall(sample)) == bool(reason)
    assert reason in shortfall(sample)


def test_nothing_removed_is_silent_unless_an_operator_is_named():
    assert silent_no_op(a_sample(removed_ratio=0.0))
    assert not silent_no_op(a_sample(removed_ratio=0.0, blocked_by=("aten.gru",)))
    assert not silent_no_op(a_sample())


def test_figures_name_what_only_the_peer_handles():
    samples = [
        a_sample("a"),
        a_sample("b", reached=0.1),
        a_sample("a", "torch_pruning"),
        a_sample("b", "torch_pruning"),
    ]
    found = figures(samples)
    assert found["architectures"] == 2
    assert (found["pass_ratio"], found["torch_pruning_pass_ratio"]) == (0.5, 1.0)
    assert found["handled_by_torch_pruning_alone"] == ["b"]
    assert list(found["short"]) == ["b"]


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight
        self.up, self.norm = nn.ConvTranspose2d(4, 8, 2), nn.BatchNorm2d(8)
        self.gru, self.table, self.out = nn.GRU(6, 5), nn.Parameter(torch.zeros(3, 3)), nn.Linear(5, 7)


def test_channels_are_outputs_of_layers_that_are_not_fixed():
    model = Several()
    slots = channel_slots(model, ("out",))
    assert slots == {
        ("embed.weight", "head.weight"): 1, ("up.weight",): 1, ("gru.weight_ih_l0",): 0, ("gru.weight_hh_l0",): 0,
    }  # fmt: skip
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert channels(slots, shapes) == 6 + 8 + 15 + 15


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_of_the_table_are_layers_of_the_network(name):
    architecture = ARCHITECTURES[name]
    model, _ = architecture.build()
    assert all(isinstance(model.get_submodule(layer).weight, nn.Parameter) for layer in architecture.outputs)
    assert channel_slots(model, architecture.outputs)


def test_the_zoo_needs_no_package_of_the_extra():
    code = "import sys, benchmarks.zoo, benchmarks.zoo.hugging_face; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

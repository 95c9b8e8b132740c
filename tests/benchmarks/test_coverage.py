"""The coverage benchmark: which results pass, and which channels count."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks import coverage
from benchmarks.coverage import compute_figures, find_shortfall, is_silent_no_op
from benchmarks.coverage_worker import count_channels, find_channel_slots
from benchmarks.independent_check import CHECKED, compare_with_module
from benchmarks.zoo import ARCHITECTURES
from benchmarks.zoo.every import EVERY, NEW
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.rewrite import prune

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
        (a_sample(independent_error=1e-3), "not exact: the outputs differ by 0.001"),
        (a_sample(independent_error=1e-15), ""),
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
    assert figures["fresh_pass_ratio"] is None


def test_figures_count_apart_what_came_after_the_rules_and_what_was_checked_independently():
    samples = [a_sample("old"), a_sample("new", reached=0.1), a_sample("newer", independent_error=2e-15)]
    samples[2]["rows"][0]["independent_error"] = 1e-15
    figures = compute_figures(samples, fresh=("new", "newer", "not measured"))
    assert (figures["fresh_architectures"], figures["fresh_pass_ratio"]) == (2, 0.5)
    assert (figures["independently_checked"], figures["worst_independent_error"]) == (1, 2e-15)


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    measured = []

    def measure(tool, name, _):
        measured.append((name, tool))
        return a_sample(name, tool)

    monkeypatch.setattr(coverage, "measure", measure)
    monkeypatch.setattr(coverage, "_prepare_processes", lambda: None)
    out = tmp_path / "coverage.json"
    run = CliRunner().invoke
    assert run(coverage.main, ["--only", "tcn", "--tool", "edgeopt", "--json", str(out)]).exit_code == 0
    assert run(coverage.main, ["--quick", "--add", "--jobs", "2", "--json", str(out)]).exit_code == 0
    assert len(measured) == len(set(measured)) == 2 * len(coverage.QUICK_ARCHITECTURES)
    names = [sample["name"] for sample in json.loads(out.read_text())["samples"]]
    assert names == sorted(names, key=list(EVERY).index)
    assert run(coverage.main, ["--only", "tcn", "--add", "--json", str(out)]).exit_code == 0
    assert measured[-2:] == [("tcn", "edgeopt"), ("tcn", "torch_pruning")]


def test_a_name_that_the_zoo_does_not_have_is_an_error(tmp_path):
    done = CliRunner().invoke(coverage.main, ["--only", "resnet19", "--json", str(tmp_path / "x.json")])
    assert done.exit_code == 2
    assert "The zoo has no resnet19." in done.output


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


class NormedLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.group = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.wide, self.norm = nn.Linear(16, 24), nn.LayerNorm(24)
        self.rnn, self.head = nn.GRU(24, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        y = self.group(self.conv(x)).relu().flatten(2).transpose(1, 2)
        return self.head(self.rnn(self.norm(self.wide(y)).sigmoid())[0])


def pruned_by_half(model, inputs):
    network = Network.trace(model, inputs)
    groups = analyse(network)
    keep = {name: list(range(1, group.channels, 2)) for name, group in groups.free.items()}
    return groups, keep, prune(network, groups, keep)


def test_the_independent_check_agrees_with_a_right_cut_and_finds_a_wrong_one():
    torch.manual_seed(0)
    model = NormedLayers().eval()
    groups, keep, pruned = pruned_by_half(model, (torch.randn(2, 3, 6, 6),))
    inputs = (torch.randn(3, 3, 6, 6),)
    assert compare_with_module(model, groups, keep, pruned, inputs) < 1e-12
    with torch.no_grad():
        pruned.parameters()["wide.weight"][[0, 1]] = pruned.parameters()["wide.weight"][[1, 0]]
    assert compare_with_module(model, groups, keep, pruned, inputs) > 1e-3


def test_at_least_twenty_networks_are_checked_independently():
    assert len(CHECKED) == len(set(CHECKED)) >= 20
    assert set(CHECKED) <= set(EVERY)


def test_the_zoo_has_120_networks_of_which_50_are_model_types():
    assert len(EVERY) >= 120
    assert sum(name.startswith("hf/") for name in NEW) >= 50


class ComputedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        norms = nn.utils.parametrizations
        self.up, self.wide = norms.weight_norm(nn.ConvTranspose1d(4, 6, 3)), norms.spectral_norm(nn.Linear(6, 8))
        self.head = norms.spectral_norm(nn.Linear(8, 3))
        self.weight = nn.Parameter(torch.zeros(4, 8, 8, 8))  # experts


def test_channels_of_computed_weights_count_and_those_of_their_fixed_outputs_do_not():
    assert find_channel_slots(ComputedWeights(), ("head",)) == {
        ("up.parametrizations.weight.original1",): 1, ("wide.parametrizations.weight.original",): 0,
    }  # fmt: skip


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

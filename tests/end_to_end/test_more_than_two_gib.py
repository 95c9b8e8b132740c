"""A network with more than 2 GiB of weights: exported, quantized, measured, shipped and checked, without a training."""

import json
import resource

import pytest
from building import choice_of, edgeopt, write_target

from edgeopt.cli import main
from edgeopt.pipeline.artifacts import large_models

TASK = '''
import edgeopt
import torch
from torch import nn


class Net(nn.Module):
    """A table of 0.25 billion values and five products of 0.34 billion; every tensor holds other random values."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(60_000, 4096)
        widths = (4096, 8192, 8192, 8192, 8192, 8192)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.head = nn.Linear(8192, 4)

    def forward(self, x):
        y = self.table(x).mean(1)
        for layer in self.layers:
            y = torch.relu(layer(y))
        return self.head(y)


def build():
    with torch.device("meta"):
        net = Net()
    net = net.to_empty(device="cpu")
    for seed, value in enumerate(net.parameters()):
        block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed)) / value.shape[-1] ** 0.5
        flat = value.data.view(-1)
        for start in range(0, len(flat), len(block)):
            flat[start : start + len(block)] = block[: len(flat) - start]
    return net


def batches(seed):
    x = torch.randint(0, 60_000, (32, 6), generator=torch.Generator().manual_seed(seed))
    return [(x, torch.arange(32) % 4)]


def task():
    return edgeopt.classification(build, batches, batches(1000), name="large")
'''
WEIGHT_BYTES = 4 * (60_000 * 4096 + 4096 * 8192 + 4 * 8192**2)
MAX_PROCESS_BYTES = 2.5 * WEIGHT_BYTES
UNLIMITED = dict.fromkeys(("max_latency_ms", "max_peak_memory_bytes", "max_size_bytes"), '"none"')


@pytest.mark.slow
def test_a_network_of_more_than_two_gib_is_built_and_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(large_models, "total_memory_bytes", lambda: 8e9)  # so that nothing trains, on any machine
    (tmp_path / "net.py").write_text(TASK)
    write_target(tmp_path / "tiny.toml", precisions='["int8", "fp32"]', max_score_drop="1.0", **UNLIMITED)
    with pytest.raises(SystemExit) as ended:
        main(["build", "net.py:task", "--target", "tiny.toml", "--quick", "--yes"])
    assert not ended.value.code
    choice = choice_of(tmp_path)
    assert choice["baseline"]["size_bytes"] > WEIGHT_BYTES > 2**31
    assert choice["winner"]["size_bytes"] < WEIGHT_BYTES / 3.5
    assert any(note.startswith("Not pruned or trained: with 0.5") for note in choice["notes"])
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        assert resource.getrusage(who).ru_maxrss * 1024 < MAX_PROCESS_BYTES
    done = edgeopt(tmp_path, "check", "edgeopt-out", "--target", "tiny.toml", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["status"] == "passed"

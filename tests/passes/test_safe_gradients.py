"""The layer whose weight gradient crashes in PyTorch is never trained as it is."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from edgeopt.passes.network import Network
from edgeopt.passes.safe_gradients import take_stride_out

FLOAT32_SUMS = 1e-5
"""Relative, on sums of some ten thousand products."""


def strided(channels, stride=2, **options):
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, 32, 1, stride=stride, **options)
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), convolution).eval()


@pytest.mark.parametrize("channels", [1, 4, 8, 15, 16])
@pytest.mark.parametrize("stride", [2, (1, 3)])
def test_the_result_and_its_gradients_stay_the_same(channels, stride):
    model, inputs = strided(channels, stride), torch.randn(2, 3, 21, 18)
    network = Network.trace(model, (inputs,))
    module = take_stride_out(network.train_module)
    outputs, expected = module(inputs), model.double()(inputs.double())
    assert (outputs - expected).abs().max() < FLOAT32_SUMS * expected.abs().max()
    outputs.square().sum().backward()
    expected.square().sum().backward()
    for name, value in model.named_parameters():
        found = network.parameters()[name].grad
        assert (found - value.grad).abs().max() < FLOAT32_SUMS * value.grad.abs().max(), name


def test_a_network_without_such_a_layer_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3)).eval()
    network = Network.trace(model, (torch.randn(2, 3, 8, 8),))
    assert take_stride_out(network.train_module) is network.train_module
    assert take_stride_out(model) is model


SCRIPT = """
import sys, tempfile
from pathlib import Path
import torch
from torch import nn
import edgeopt
from edgeopt.passes.distill.teacher import TeacherOutputs
from edgeopt.passes.distill.train import Distillation
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import analyse
from edgeopt.passes.prune.importance import score_channels
from edgeopt.passes.sparsify import SparsitySchedule
from edgeopt.records.recipe import Distill, Importance, Sparsify
from edgeopt.task import CheckedTask

torch.set_num_threads(1)
channels = int(sys.argv[1])
model = nn.Sequential(
    nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 32, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(32, 2),
).to(memory_format=torch.channels_last).eval()
batches = [(torch.randn(8, 3, 90, 120), torch.arange(8) % 2) for _ in range(3)]
task = CheckedTask(edgeopt.classification(model, batches, batches), "spec")
network = Network.trace(task.model, task.example_inputs)
step = Distill(epochs=1, optimizer="sgd", learning_rate=0.01, weight_decay=0.0, warmup_ratio=0.1, temperature=4.0,
               kl_weight=0.9, mse_weight=0.0, hard_weight=0.1)
pairs = list(task.train_epoch(0))
last = [((x.contiguous(memory_format=torch.channels_last),), y) for (x,), y in pairs]
score_channels(network, analyse(network), Importance(), last, task.loss)
sparsity = SparsitySchedule(Sparsify(method="taylor", ratio=0.5, scope="global", schedule="once"), last, task.loss, 1)
folder = Path(tempfile.mkdtemp())
stream = TeacherOutputs(folder, task, task.model, epochs=1, seed=0)
Distillation(network.train_module, network.eval_module, task, step, stream, sparsity=sparsity,
             checkpoint=folder / "checkpoint", progress=lambda *_: None).run()
print("trained")
"""


@pytest.mark.parametrize("channels", [4, 8])
def test_training_scoring_and_sparsity_survive_that_layer_in_channels_last_memory(channels):
    """4 channels crash with AVX2, and 8 with AVX-512."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(channels)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr[-2000:]

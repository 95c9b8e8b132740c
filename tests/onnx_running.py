"""Networks, files and runs that the tests of graph steps share. ONNX Runtime runs in processes of its own."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch
from builders import a_profile
from tiny_models import a_run_target
from torch import nn

from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.export.to_onnx import export
from edgeopt.tasks.networks.resnet import SmallResNet

IMAGES = 16
_OPTIMIZE = (
    "import sys, onnxruntime as ort; o = ort.SessionOptions(); o.optimized_model_filepath = sys.argv[2]; "
    "o.log_severity_level = 3; ort.InferenceSession(sys.argv[1], o, providers=['CPUExecutionProvider'])"
)


def some_images(count: int = IMAGES, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Smooth images of 16 x 16 in a range like that of real ones."""
    noise = np.random.RandomState(seed).normal(size=(count, channels, 19, 19)).astype(np.float32)
    return sum(noise[:, :, i : i + 16, j : j + 16] for i in range(4) for j in range(4)) / 4


def a_network(*, stem: int = 8, channels: int = 1, seed: int = 0) -> SmallResNet:
    """A small residual network whose batch norms look trained: real statistics, uneven scales and shifts."""
    torch.manual_seed(seed)
    network = SmallResNet(classes=5, in_channels=channels, stem=stem, widths=(8, 16), blocks=1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            nn.init.uniform_(part.weight, 0.4, 1.4)
            nn.init.normal_(part.bias, 0, 0.3)
    network.train()
    with torch.no_grad():
        network(torch.from_numpy(some_images(64, channels, seed=1)))
    return network.eval()


def write(network: nn.Module, path: Path, *, channels: int = 1, max_opset: int = 20, **options: object) -> Path:
    """Export with the quick exporter."""
    example = torch.from_numpy(some_images(1, channels))
    export(
        network,
        (example,),
        path,
        input_names=["image"],
        output_names=["logits"],
        max_opset=max_opset,
        max_ir=9,
        **{"exporter": "torchscript", **options},
    )
    return path


def run(model: Path, images: np.ndarray) -> np.ndarray:
    """Return the first output under ONNX Runtime."""
    return next(iter(run_all(model, images).values()))


def run_all(model: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return every output under ONNX Runtime, by name."""
    inputs, outputs = model.with_suffix(".in.npz"), model.with_suffix(".out.npz")
    name = onnx.load(model).graph.input[0].name
    write_batches(inputs, [{name: images}])
    run_model(model, inputs, outputs, a_run_target(a_profile()))
    return read_batches(outputs)[0]


def runtime_operators(model: Path) -> Counter[str]:
    """Count the operators that ONNX Runtime's optimizer makes of a file."""
    optimized = model.with_suffix(".optimized.onnx")
    command = [sys.executable, "-c", _OPTIMIZE, str(model), str(optimized)]
    subprocess.run(command, check=True, env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"}, capture_output=True)
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def signal_to_noise_db(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the ratio of signal to error power in decibels."""
    return float(10 * np.log10((expected**2).sum() / max(((expected - actual) ** 2).sum(), 1e-30)))

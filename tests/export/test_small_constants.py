"""Constants near zero are part of what a network computes: an exporter must not drop them."""

import numpy as np
import pytest
import torch
from onnx_running import run_all
from torch import nn
from torch.nn import functional

from edgeopt.export.to_onnx import export

NEAR_ZERO = np.array([[0, 0, 0, 0], [1e-9, 2e-9, 3e-9, 4e-9], [1, 1, 1, 1], [1e-5, 3e-5, 1e-5, 2e-5]], np.float32)
TOLERANCE_RATIO = 1e-4  # rounding of float32 over a few operators


FORMULAS = {
    "division by a sum": lambda x, e: x / (x.sum(-1, keepdim=True) + e),
    "a sum minus a constant": lambda x, e: x / (x.sum(-1, keepdim=True) - e),
    "logarithm": lambda x, e: torch.log(x + e),
    "logarithm of a clamp": lambda x, e: torch.log(x.clamp(min=e)),
    "normalize": lambda x, e: functional.normalize(x, eps=e),
    "root mean square": lambda x, e: functional.rms_norm(x, (4,), eps=e),
    "reciprocal root": lambda x, e: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + e),
    "in double precision": lambda x, e: (x.double() / (x.double().sum(-1, keepdim=True) + e)).float(),
}


class Formulas(nn.Module):
    """Applies every formula, with one epsilon."""

    def __init__(self, epsilon):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x):
        return {name: formula(x, self.epsilon) for name, formula in FORMULAS.items()}


@pytest.mark.parametrize("epsilon", [1e-8, 1e-12])
def test_a_small_constant_survives_the_export(tmp_path, epsilon):
    network, path = Formulas(epsilon).eval(), tmp_path / "m.onnx"
    names = [name.replace(" ", "_") for name in FORMULAS]
    export(network, (torch.rand(2, 4),), path, input_names=["x"], output_names=names, max_opset=20, max_ir=10)
    found = run_all(path, NEAR_ZERO)
    for name, expected in network(torch.from_numpy(NEAR_ZERO)).items():
        np.testing.assert_allclose(found[name.replace(" ", "_")], expected.numpy(), rtol=TOLERANCE_RATIO, err_msg=name)

"""Networks in half precision and in float64 become float32, with their inputs and targets."""

import numpy as np
import torch
from bare_task import checked
from torch import nn


def test_a_network_in_half_precision_is_widened():
    task = checked(nn.Linear(4, 2).to(torch.bfloat16), torch.randn(3, 4).to(torch.bfloat16))
    assert task.model.weight.dtype is torch.float32
    assert task.example_inputs[0].dtype is torch.float32
    assert "bfloat16 weights were widened" in task.notes[0]
    [(inputs, _)] = task.eval_batches()
    assert inputs[0].dtype is torch.float32


def test_a_network_in_float64_is_rounded_with_its_inputs_and_targets():
    """ONNX Runtime has float64 kernels for few operators, and int8 and float16 start from float32."""
    task = checked(nn.Linear(4, 2).double(), torch.randn(3, 4, dtype=torch.float64))
    assert task.model.weight.dtype is torch.float32
    assert task.example_inputs[0].dtype is torch.float32
    assert "float64 weights were rounded to float32" in task.notes[0]
    [(inputs, _)] = task.eval_batches()
    assert inputs[0].dtype is torch.float32
    batch = (np.zeros((3, 4)), {"values": np.ones(3), "classes": np.arange(3)})
    inputs, targets = task.interface.split(batch, "train_batches()")
    assert inputs[0].dtype is targets["values"].dtype is torch.float32
    assert targets["classes"].dtype == np.int64


def test_a_part_in_float64_keeps_its_type():
    class Precise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clock = nn.Linear(4, 4).double()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.clock(x).float())

    task = checked(Precise(), torch.randn(3, 4, dtype=torch.float64))
    assert task.model.clock.weight.dtype is task.example_inputs[0].dtype is torch.float64


def test_outputs_that_rounding_changes_are_noted():
    """Times in seconds since 1970 are whole minutes in float32."""

    class Elapsed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.layer = 1.7e9, nn.Linear(4, 2).double()

        def forward(self, x):
            return self.layer(x - self.start)

    task = checked(Elapsed(), 1.7e9 + torch.rand(3, 4, dtype=torch.float64))
    assert task.model.layer.weight.dtype is torch.float32
    assert any("in float32, output 0 of the model is off by" in note for note in task.notes)


def test_outputs_that_rounding_leaves_as_they_are_need_no_note():
    task = checked(nn.Linear(4, 2).double(), torch.rand(3, 4).double())
    assert task.model.weight.dtype is torch.float32
    assert len(task.notes) == 1

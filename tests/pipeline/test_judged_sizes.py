"""Sizes of dynamic dimensions: which ones are asked for, and inputs of these sizes."""

import numpy as np
import pytest
import torch
from builders import a_measurement
from torch import nn

from edgeopt.errors import InputError
from edgeopt.pipeline.artifacts.evaluator import worst_measurement
from edgeopt.pipeline.judged_sizes import judged_sizes, parity_sizes, resize_arrays
from edgeopt.task import CheckedTask


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, 8)

    def forward(self, tokens, mask):
        return (self.embedding(tokens) * mask[..., None]).mean(1)


class TextTask:
    dynamic_axes = {"tokens": {1: ("length", 2, 40)}, "mask": {1: "length"}}  # noqa: RUF012

    def build_model(self):
        return Text()

    def example_inputs(self):
        return {"tokens": torch.arange(24).reshape(2, 12), "mask": torch.ones(2, 12)}

    train_batches = eval_batches = loss = score = lambda self, *_: []


@pytest.fixture
def task():
    return CheckedTask(TextTask(), "text.py:task")


def test_without_shapes_the_example_decides(task):
    assert judged_sizes(task, (), 1) == ({"length": 12},)


def test_a_shape_of_one_input_sets_the_size_of_all_that_share_it(task):
    shapes = ({"tokens": (1, 16)}, {"tokens": (1, 32), "mask": (1, 32)})
    assert judged_sizes(task, shapes, 1) == ({"length": 16}, {"length": 32})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"token": (1, 16)}, "--shape names the input 'token', but text.py:task has tokens, mask"),
        ({"tokens": (16,)}, r"--shape gives 'tokens' 1 dimensions, but it has 2"),
        ({"tokens": (4, 16)}, "size 4 in dimension 0, its batch, but the limits apply at a batch size of 1"),
        ({"tokens": (1, 41)}, "size 41 in dimension 1, outside the range of 'length', 2 to 40"),
        ({"tokens": (1, 16), "mask": (1, 8)}, "size 8 in dimension 1, but 'length' is 16 in another input"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(task, shape, message):
    with pytest.raises(InputError, match=message):
        judged_sizes(task, (shape,), 1)


def test_a_shape_of_a_target_is_not_taken_for_an_option(task):
    with pytest.raises(InputError, match=r"^the target robot names the input 'image', but text.py:task has"):
        judged_sizes(task, ({"image": (1, 3, 8, 8)},), 1, "the target robot")


def test_inputs_are_cut_or_repeated(task):
    arrays = {"tokens": np.arange(24).reshape(2, 12), "mask": np.ones((2, 12))}
    long = resize_arrays(task, arrays, {"length": 15})
    assert long["tokens"][0].tolist() == [*range(12), 0, 1, 2]
    assert long["mask"].shape == (2, 15)
    assert resize_arrays(task, arrays, {"length": 3})["tokens"].tolist() == [[0, 1, 2], [12, 13, 14]]


def test_parity_is_checked_at_three_sizes_within_the_range(task):
    assert parity_sizes(task, []) == ({"length": 12}, {"length": 6}, {"length": 24})
    seen = [{"tokens": np.zeros((2, size)), "mask": np.zeros((2, size))} for size in (9, 39)]
    assert parity_sizes(task, seen) == ({"length": 12}, {"length": 9}, {"length": 39})
    task.task.dynamic_axes = {"tokens": {1: ("length", 8, 20)}, "mask": {1: "length"}}
    del task.interface.__dict__["dynamic_dims"]
    assert parity_sizes(task, []) == ({"length": 12}, {"length": 8}, {"length": 20})


def test_the_worst_of_several_measurements_counts():
    quick, slow = a_measurement(latency_ms=1.0, memory_bytes=9_000_000), a_measurement(latency_ms=2.0)
    worst = worst_measurement([quick, slow], 90)
    assert worst.timings == slow.timings
    assert worst.memory == quick.memory

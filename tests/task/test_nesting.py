"""Nested values are taken apart and put together again as they were."""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch

from edgeopt.errors import TaskError
from edgeopt.task.nesting import first_samples, flatten, map_tensors, tensors_of, words_of


@dataclasses.dataclass
class Detections:
    boxes: torch.Tensor
    scores: torch.Tensor
    threshold: float = 0.5


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class ModelOutput(collections.OrderedDict):
    """As in Hugging Face's library: a dataclass whose fields that are not None are also items."""

    def __init__(self, **fields):
        super().__init__((name, value) for name, value in fields.items() if value is not None)
        for name, value in fields.items():
            object.__setattr__(self, name, value)


ModelOutput.__dataclass_fields__ = {}


def a(*shape):
    return torch.arange(float(np.prod(shape))).reshape(shape)


VALUES = {
    "tensor": (a(2), ("",)),
    "tuple": ((a(2), a(3)), ("0", "1")),
    "list of dicts": ([{"boxes": a(2, 4), "labels": a(2)}, {"boxes": a(0, 4), "labels": a(0)}], None),
    "dict": ({"logits": a(2), "hidden": (a(1), a(4))}, ("logits", "hidden.0", "hidden.1")),
    "named tuple": (Pair(a(1), a(2)), ("first", "second")),
    "dataclass": (Detections(a(2, 4), a(2), 0.3), ("boxes", "scores")),
    "with constants": ((a(2), None, 3, "text"), ("0",)),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_the_same_after_it_was_taken_apart(name):
    value, names = VALUES[name]
    leaves, nesting = flatten(value)
    assert names is None or nesting.names == names
    again = nesting.nest([leaf + 1 for leaf in leaves])
    assert type(again) is type(value)
    assert [leaf.tolist() for leaf in tensors_of(again)] == [(leaf + 1).tolist() for leaf in leaves]


def test_fields_that_are_no_tensors_stay_in_a_dataclass():
    _, nesting = flatten(Detections(a(1, 4), a(1), 0.3))
    again = nesting.nest([np.zeros((5, 4)), np.zeros(5)])
    assert again.threshold == 0.3
    assert again.boxes.shape == (5, 4)


def test_an_output_of_hugging_face_keeps_its_attributes():
    leaves, nesting = flatten(ModelOutput(loss=None, logits=a(2)))
    assert nesting.names == ("logits",)
    again = nesting.nest([leaves[0] + 1])
    assert again.logits.tolist() == again["logits"].tolist() == [1, 2]


def test_another_object_is_refused_with_its_place():
    with pytest.raises(TaskError, match=r"cache\.0 is a builtins\.object, which is neither a tensor"):
        flatten({"cache": [object()]})


def test_a_wrong_number_of_tensors_is_a_mistake():
    _, nesting = flatten((a(1), a(2)))
    with pytest.raises(ValueError, match="expected 2 values, got 1"):
        nesting.nest([a(1)])


def test_only_tensors_are_mapped_and_words_are_found():
    value = {"x": a(2), "meta": ["one.png", ("two.png", 3)], "none": None}
    assert map_tensors(lambda tensor: tensor.sum().item(), value) == {**value, "x": 1.0}
    assert words_of(value) == ["one.png", "two.png"]


def test_first_samples_are_cut_along_the_batch():
    tokens, states, shared = a(16, 5), a(2, 16, 3), a(7, 7)
    cut = first_samples({"tokens": tokens, "states": (states, shared)}, 8, 16)
    assert cut["tokens"].shape == (8, 5)
    assert cut["states"][0].shape == (2, 8, 3)
    assert cut["states"][1].shape == (7, 7)

"""Batches as people's loaders yield them."""

import collections
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from edgeopt.errors import TaskError
from edgeopt.task.batches import split_batch

X, Y, Z = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(4)
IDS, MASK = torch.zeros(4, 6, dtype=torch.int64), torch.ones(4, 6, dtype=torch.int64)
BOXES = torch.zeros(4, 5, 4)


class BatchEncoding(collections.UserDict):
    """As in Hugging Face's library: not a dict, but a mapping."""


@dataclass
class Sample:
    image: Any
    mask: Any
    files: Any = None


Reversed = collections.namedtuple("Reversed", ["label", "image"])
Pair = collections.namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("batch", "parameters", "inputs", "targets"),
    [
        ((X, Y), ["x"], X, Y),
        ([X, Y], ["x"], X, Y),
        ((X, Y, ["a.png"] * 4), ["x"], X, Y),
        ((X, Y, {"id": "17"}, None), ["x"], X, Y),
        (((X, Z), (Y, Z)), ["x", "z"], (X, Z), (Y, Z)),
        ([X], ["x"], X, None),
        (X, ["x"], X, None),
        ((X, None), ["x"], X, None),
        ({"image": X, "label": Y}, ["input"], {"image": X}, Y),
        ({"x": X, "label": Y, "file": ["a"] * 4}, ["x"], {"x": X}, Y),
        ({"input_ids": IDS, "attention_mask": MASK, "labels": Y}, ["input_ids", "attention_mask", "labels"],
         {"input_ids": IDS, "attention_mask": MASK}, Y),
        (BatchEncoding({"input_ids": IDS, "labels": Y, "idx": Z}), ["input_ids"], {"input_ids": IDS}, Y),
        ({"input_ids": IDS, "start": Y, "end": Z}, ["input_ids"], {"input_ids": IDS}, {"start": Y, "end": Z}),
        ({"x": X}, ["x"], {"x": X}, None),
        (Sample(X, Y, ["a"] * 4), ["image"], {"image": X}, Y),
        (Reversed(Y, X), ["image"], {"image": X}, Y),
        (Pair(X, Y), ["x"], X, Y),
        ({"image": X, "mask": MASK, "index": Y}, ["image"], {"image": X}, MASK),
        ({"image": X, "depth": IDS, "mask": MASK}, ["image"], {"image": X}, {"depth": IDS, "mask": MASK}),
        ({"image": X, "mask": MASK, "flow": IDS, "id": ["a"]}, ["image"], {"image": X}, {"mask": MASK, "flow": IDS}),
        ({"image": X, "mask": MASK, "size": MASK[:, :2]}, ["image"], {"image": X}, MASK),
        ({"image": X, "mask": MASK, "boxes": BOXES}, ["image"], {"image": X}, MASK),
    ],
)  # fmt: skip
def test_inputs_and_targets_are_found(batch, parameters, inputs, targets):
    found = split_batch(batch, parameters, "train_batches()")
    assert same(found, (inputs, targets))


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left is right
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def test_a_flat_batch_for_several_inputs_is_refused_with_the_line_that_mends_it():
    with pytest.raises(
        TaskError, match=r"such as \[\(\(shop, numbers\), targets\) for shop, numbers, targets in loader\]"
    ):
        split_batch((X, Z, Y), ["shop", "numbers"], "eval_batches()")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Z, Y), r"train_batches\(\) yields batches of 3 parts \(tensor 4x3 float32, tensor 4 float32, tensor 4 "
         r"int64\)\. Give \(inputs, targets\)"),
        ({"left": X, "right": X, "label": Y}, "a dict with the keys left, right, label, of which none is a parameter"),
        ("text", r"yields str, not \(inputs, targets\)\. Give a tuple, a dict or a dataclass"),
        ([], "an empty list"),
    ],
)  # fmt: skip
def test_other_forms_are_refused(batch, message):
    with pytest.raises(TaskError, match=message):
        split_batch(batch, ["x"], "train_batches()")


def test_a_batch_with_a_part_that_is_neither_input_nor_target_is_refused_with_the_line_that_drops_it():
    with pytest.raises(
        TaskError, match=r"leave out what is neither: \[\(inputs, targets\) for inputs, targets, \*_ in"
    ):
        split_batch((X, Y, {"path": ["a.png"] * 4, "index": Z}), ["image"], "eval_batches()")

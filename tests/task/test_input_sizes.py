"""Smaller images inside a network: which models take them, and what becomes of their outputs."""

import re

import pytest
import torch
from bare_task import checked
from torch import nn

from edgeopt.errors import TaskError
from edgeopt.pipeline.torch_process.protocol import NetworkRef
from edgeopt.pipeline.torch_process.task_networks import TaskNetworks
from edgeopt.task.input_sizes import shrinking_image, smaller_size, try_size


class Maps(nn.Module):
    """A score for each image, a map at a quarter of its size, a map of depths, and a map of classes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        with torch.no_grad():  # each class wins somewhere on a ramp from 0 to 4
            self.conv.weight.copy_(torch.arange(1.0, 6.0).view(5, 1, 1, 1).expand_as(self.conv.weight) / 27)
            self.conv.bias.copy_(-torch.tensor([0.0, 0.5, 2.0, 4.5, 8.0]))

    def forward(self, image):
        features = self.conv(image)
        whole = nn.functional.interpolate(features, scale_factor=2.0, mode="bilinear")
        return {
            "score": features.mean((2, 3)),
            "heat": nn.functional.max_pool2d(features, 2),
            "depth": whole[:, 0],
            "classes": whole.argmax(1),
        }


class Boxes(nn.Module):
    """A box for each place, as detectors give them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=8, padding=1)

    def forward(self, image):
        return self.conv(image).flatten(2).transpose(1, 2)


class Flattened(nn.Sequential):
    """A classifier whose last layer reads every place, so its image has one size."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten(), nn.Linear(4 * 12 * 16, 2))


def a_task(model, image=(3, 48, 64), **members):
    torch.manual_seed(0)
    return checked(model.eval(), torch.randn(2, *image), targets=torch.zeros(2), **members)


def sizes_of(task):
    sizes, reason = TaskNetworks(task).input_sizes(NetworkRef(source="original", file=None))
    return tuple(sizes), reason


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [((180, 240), 0.75, (136, 176)), ((180, 240), 0.5, (88, 128)), ((224, 224), 0.75, (160, 160)),
     ((32, 32), 0.75, (24, 24)), ((28, 30), 0.75, (20, 22)), ((31, 33), 0.5, (16, 16))],
)  # fmt: skip
def test_a_smaller_size_is_divisible_as_the_whole_is(size, ratio, expected):
    found = smaller_size(size, ratio)
    assert all(abs(one - ratio * whole) <= whole / 16 for one, whole in zip(found, size, strict=True))
    assert found == expected


def test_outputs_keep_their_shapes_and_types_and_maps_show_the_same_image():
    task = a_task(Maps())
    assert sizes_of(task) == (((36, 48), (24, 32)), "")
    rows = torch.linspace(0, 4, 48).view(1, 1, 48, 1).expand(2, 3, 48, 64).contiguous()
    model = task.model
    lower = try_size(model, task, (36, 48))
    with torch.no_grad(), task.interface.flat_forward(model):
        whole = model(rows)
        with shrinking_image(model, lower):
            shrunk = model(rows)
        again = model(rows)
    for one, other, same in zip(whole, shrunk, again, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert torch.equal(one, same), "the model is left as it was"
    inner = (..., slice(8, 40), slice(8, 56))  # away from the edges, which padding changes
    depth, shrunk_depth = whole[2][inner], shrunk[2][inner]
    assert (depth - shrunk_depth).abs().max() < 0.05 * (depth.max() - depth.min())
    assert (whole[3][inner] == shrunk[3][inner]).float().mean() > 0.9


def test_boxes_of_other_counts_are_no_map():
    sizes, reason = sizes_of(a_task(Boxes()))
    assert sizes == ()
    assert reason == (
        "at 36x48, output 'output' has shape [30, 6] for each sample, not [48, 6]; "
        "at 24x32, output 'output' has shape [12, 6] for each sample, not [48, 6]"
    )


def test_a_model_for_one_size_says_so():
    sizes, reason = sizes_of(a_task(Flattened()))
    assert sizes == ()
    assert "at 36x48, RuntimeError: mat1 and mat2 shapes cannot be multiplied" in reason


def test_the_sizes_of_the_task_are_tried_and_larger_ones_named():
    task = a_task(Maps(), input_sizes=[(24, 24), (96, 96), (40, 60)])
    assert sizes_of(task) == (((40, 60), (24, 24)), "at 96x96, the image would not be smaller than 48x64")


@pytest.mark.parametrize("given", [(24, 24), [(24,)], [(24, 0)], "small"])
def test_sizes_that_are_none_are_refused(given):
    with pytest.raises(TaskError, match=r"tests: input_sizes has to list heights and widths .*; found"):
        a_task(Maps(), input_sizes=given)


def test_what_is_no_image_is_not_shrunk():
    assert sizes_of(a_task(nn.Linear(3, 2), image=(48, 64, 3))) == ((), "")
    rows = a_task(nn.Linear(64, 2), image=(64,))
    assert sizes_of(rows) == ((), "")
    rows.input_sizes = ((8, 8),)
    assert sizes_of(rows) == ((), "no inputs are images, [batch, channels, height, width], with a side of 16 or more")


def test_an_image_whose_training_crops_are_smaller_says_why_it_is_not_shrunk():
    task = a_task(Maps(), input_sizes=[(24, 24)])
    task.task.train_batches = lambda seed: [(torch.randn(2, 3, 32, 32), torch.zeros(2))]
    assert sizes_of(task) == ((), "the image has no fixed size (training crops need that of the evaluation)")


class Mixed(nn.Module):
    """Mixes samples if the image has another size than 64 x 64: eight samples become two."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, image):
        return self.conv(image).view(-1, 8 * 64 * 64)[:, :5]


class Tokens(nn.Module):
    """As many tokens as each has values, so that they look like a map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 8, stride=8)

    def forward(self, image):
        return self.conv(image).flatten(2).transpose(1, 2)


class Grid(nn.Module):
    """Adds a grid of positions that it makes from the size of the image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        scale = torch.tensor([float(image.shape[-1]), 1.0, 1.0, 1.0])
        return self.conv(image).mean((2, 3)) * scale


class Table(nn.Module):
    """Knows two sizes of images by heart."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        return self.conv(image).mean((2, 3)) * {64: 2.0, 128: 4.0}[image.shape[-1]]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Mixed, "for each sample, not"),
        (Tokens, r"output 'output' has shape \[16, 64\] for each sample, not \[64, 64\]"),
        (Grid, "'.*' depends on the size of the image"),
        (Table, "KeyError: 32"),
    ],
)
def test_models_that_depend_on_the_size_are_not_shrunk_and_end_no_build(model, reason):
    torch.manual_seed(0)
    task = checked(model().eval(), torch.randn(8, 3, 64, 64), targets=torch.zeros(8), input_sizes=[(32, 32)])
    sizes, found = sizes_of(task)
    assert sizes == ()
    assert re.search(reason, found), found


class WithTokens(nn.Module):
    """An image and tokens of any length."""

    def __init__(self):
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 20, 3, padding=1), nn.Embedding(11, 20)

    def forward(self, image, tokens):
        return self.table(tokens) + self.conv(image).mean((2, 3))[:, None]


def test_other_inputs_may_have_any_length():
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 32, 32), torch.randint(0, 11, (2, 7)))
    task = checked(
        WithTokens().eval(), inputs, targets=torch.zeros(2), dynamic_axes={"tokens": {1: "length"}},
        input_names=("image", "tokens"),
    )  # fmt: skip
    assert sizes_of(task) == (((24, 24), (16, 16)), "")

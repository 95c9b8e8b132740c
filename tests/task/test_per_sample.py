"""Models that return an entry for each sample, as torchvision's detectors do."""

import pytest
import torch
from test_interface import checked
from torch import nn

from edgeopt.errors import TaskError


class Detector(nn.Module):
    """Takes a list of images or a stacked batch, and returns what it found in each."""

    def __init__(self, as_dicts=True):
        super().__init__()
        self.layer, self.as_dicts = nn.Conv2d(3, 5, 1), as_dicts

    def forward(self, images, targets=None):
        found = []
        for one in self.layer(torch.stack(list(images))):
            rows = one.flatten(1).T
            rows = rows[rows[:, 4] > 0]
            found.append({"boxes": rows[:, :4], "scores": rows[:, 4]} if self.as_dicts else rows)
        return found


IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("example", [IMAGES, ([*IMAGES],), IMAGES[:1], ([IMAGES[0]],)])
def test_a_list_of_dicts_is_refused(example):
    with pytest.raises(
        TaskError, match=r"returns a list of \d dicts? \(boxes, scores\), one for each sample\. .*guide"
    ):
        _ = checked(Detector(), example).output_names


def test_a_list_of_tensors_for_each_sample_is_refused():
    with pytest.raises(TaskError, match=r"returns 4 tensors for 4 samples of example_inputs\(\), but 1 for one\."):
        _ = checked(Detector(as_dicts=False), IMAGES).axes


def test_a_list_of_images_is_not_taken_for_inputs():
    with pytest.raises(TaskError, match=r"gives 4 inputs.*stack them into one tensor"):
        _ = checked(Detector(), [*IMAGES]).output_names


class Scales(nn.Module):
    """Returns a dict for each scale, each with the batch as its first dimension."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 1)

    def forward(self, images):
        x = self.layer(images)
        return [{"boxes": x[:, :4], "classes": x[:, 4:]}, {"boxes": x[:, :4, ::2], "classes": x[:, 4:, ::2]}]


@pytest.mark.parametrize("samples", [2, 3])
def test_a_list_of_dicts_for_each_scale_is_fine(samples):
    task = checked(Scales(), IMAGES[:samples])
    assert task.output_names == ("output_0_boxes", "output_0_classes", "output_1_boxes", "output_1_classes")
    assert task.axes.outputs == (0, 0, 0, 0)

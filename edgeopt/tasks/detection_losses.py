"""Losses of an anchor-free detector, whose outputs ``edgeopt.tasks.peaks`` describes.

Objects are drawn into heat-maps as Gaussians whose size follows the box (Liu et al., 2020, TTFNet); the heat-map gets
the penalty-reduced focal loss of CenterNet (Zhou et al., 2019), and each object's box the generalized intersection over
union (Rezatofighi et al., 2019) at all places near its centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.task.logits import at_least_float32
from edgeopt.tasks.peaks import LOG_SIDES

_SIGMA_RATIO = 0.09
"""Standard deviation of a Gaussian over the side of its box: 0.54 / 6 of TTFNet."""
_MIN_SIGMA = 0.3
"""In places: the neighbours of a small object's centre count as background."""
_NEAR = 0.3
"""Places with at least this height of the Gaussian learn the object's box."""
_BOX_WEIGHT = 2.0


class Objects(NamedTuple):
    """The objects of a batch."""

    images: Tensor
    """Number of the image, int64 (N,)."""
    labels: Tensor
    """Class, int64 (N,)."""
    boxes: Tensor
    """Left, top, right and bottom in pixels (N, 4)."""
    crowds: Tensor
    """Whether it is neither object nor background, bool (N,)."""


def gather_objects(targets: Sequence[Mapping[str, Any]], like: Tensor) -> Objects:
    """Return the objects of a batch on the device, and in the type, of ``like``."""
    boxes, labels, crowds, images = [], [], [], []
    for number, target in enumerate(targets):
        boxes.append(torch.as_tensor(target["boxes"], dtype=like.dtype).reshape(-1, 4))
        count = len(boxes[-1])
        labels.append(torch.as_tensor(target["labels"], dtype=torch.int64).reshape(-1))
        crowd = target.get("iscrowd")
        crowds.append(
            torch.zeros(count, dtype=torch.bool) if crowd is None else torch.as_tensor(crowd).bool().reshape(-1)
        )
        images.append(torch.full((count,), number))
    parts = (torch.cat(images), *(torch.cat([one.to(like.device) for one in each]) for each in (labels, boxes, crowds)))
    return Objects(*(part.to(like.device) for part in parts))


def draw_gaussians(boxes: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Return a map for each box with 1 at the place of its centre and a Gaussian around it.

    Args:
        boxes: ``(N, 4)``, in pixels.
        size: Height and width of the map.
        stride: Pixels from one place to the next.

    Returns:
        ``(N, height, width)``.
    """
    height, width = size
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).floor()
    x, y = middle[:, 0].clamp(0, width - 1), middle[:, 1].clamp(0, height - 1)
    sigma = ((boxes[:, 2:] - boxes[:, :2]) / stride * _SIGMA_RATIO).clamp_min(_MIN_SIGMA)
    columns, rows = (torch.arange(count, device=boxes.device, dtype=boxes.dtype) for count in (width, height))
    across = torch.exp(-((columns - x[:, None]) ** 2) / (2 * sigma[:, :1] ** 2))
    down = torch.exp(-((rows - y[:, None]) ** 2) / (2 * sigma[:, 1:] ** 2))
    return down[:, :, None] * across[:, None, :]


def boxes_of_sides(sides: Tensor, rows: Tensor, columns: Tensor, stride: int) -> Tensor:
    """Return the boxes ``(N, 4)`` in pixels of sides ``(N, 4)`` at places."""
    reach = stride * sides.clamp(*LOG_SIDES).exp()
    middle = (torch.stack([columns, rows], 1) + 0.5) * stride
    return torch.cat([middle - reach[:, :2], middle + reach[:, 2:]], 1)


def generalized_overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the generalized intersection over union of pairs of boxes ``(N, 4)``, from -1 to 1."""
    both = (torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])).clamp_min(0)
    hull = torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])
    shared, around = both.prod(1), hull.prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1) - shared
    return shared / union - (around - union) / around


def detection_loss(heatmap: Tensor, sides: Tensor, targets: Sequence[Mapping[str, Any]], stride: int) -> Tensor:
    """Return the loss of a batch against its boxes.

    Args:
        heatmap: Logits ``(batch, classes, height, width)``.
        sides: ``(batch, 4, height, width)``.
        targets: For each image ``boxes``, ``labels`` and perhaps ``iscrowd``: places in such a box are neither object
            nor background of its class.
        stride: Pixels from one place to the next.
    """
    heatmap, sides = at_least_float32(heatmap), at_least_float32(sides)
    objects = gather_objects(targets, heatmap)
    wanted = Objects(*(part[~objects.crowds] for part in objects))
    gaussians = draw_gaussians(wanted.boxes, (heatmap.shape[2], heatmap.shape[3]), stride)
    loss = focal_loss(heatmap, _on_maps(gaussians, wanted, heatmap), _crowd_places(objects, heatmap, stride))
    return loss + _BOX_WEIGHT * _box_loss(sides, wanted, gaussians, stride)


def focal_loss(heatmap: Tensor, wanted: Tensor, uncounted: Tensor) -> Tensor:
    """Return the penalty-reduced focal loss over the number of objects (Zhou et al., 2019, equation 1).

    Args:
        heatmap: Logits.
        wanted: 1 at the centres of objects, less around them, in the same shape.
        uncounted: Places that are not background.
    """
    probability, is_centre = torch.sigmoid(heatmap), wanted == 1
    found = (1 - probability) ** 2 * -functional.logsigmoid(heatmap)
    wrong = (1 - wanted) ** 4 * probability**2 * -functional.logsigmoid(-heatmap)
    total = torch.where(is_centre, found, wrong.masked_fill(uncounted, 0)).sum()
    return total / is_centre.sum().clamp_min(1)


def detection_distill_loss(heatmap: Tensor, sides: Tensor, taught_heatmap: Tensor, taught_sides: Tensor) -> Tensor:
    """Return the loss of a batch against the outputs of its teacher.

    The teacher's probabilities are soft targets of a focal loss (Li et al., 2020, quality focal loss, with an exponent
    of 1, less the entropy of the targets); a place's sides count as far as the teacher finds an object there.
    """
    heatmap, sides, taught_heatmap, taught_sides = map(at_least_float32, (heatmap, sides, taught_heatmap, taught_sides))
    expected = torch.sigmoid(taught_heatmap)
    cross, entropy = (
        functional.binary_cross_entropy_with_logits(logits, expected, reduction="none")
        for logits in (heatmap, taught_heatmap)
    )
    certain = expected.amax(1, keepdim=True)
    heat = ((torch.sigmoid(heatmap) - expected).abs() * (cross - entropy)).sum() / certain.sum().clamp_min(1)
    distance = functional.smooth_l1_loss(sides, taught_sides, reduction="none").mean(1, keepdim=True)
    return heat + _BOX_WEIGHT * (distance * certain**2).sum() / (certain**2).sum().clamp_min(1)


def _on_maps(gaussians: Tensor, objects: Objects, heatmap: Tensor) -> Tensor:
    """Return the heat-map that is wanted: the highest Gaussian at each place."""
    batch, classes, height, width = heatmap.shape
    maps = heatmap.new_zeros(batch * classes, height * width)
    index = (objects.images * classes + objects.labels)[:, None].expand(-1, height * width)
    return maps.scatter_reduce(0, index, gaussians.flatten(1), "amax").reshape(heatmap.shape)


def _crowd_places(objects: Objects, heatmap: Tensor, stride: int) -> Tensor:
    """Return which places lie in a crowd of their class, in the shape of the heat-map."""
    crowds = Objects(*(part[objects.crowds] for part in objects))
    left, top, right, bottom = (side[:, None] for side in crowds.boxes.T)
    x, y = ((torch.arange(size, device=heatmap.device) + 0.5) * stride for size in (heatmap.shape[3], heatmap.shape[2]))
    half = stride / 2  # a place that the box touches
    across, down = (x > left - half) & (x < right + half), (y > top - half) & (y < bottom + half)
    return _on_maps((down[:, :, None] & across[:, None, :]).to(heatmap.dtype), crowds, heatmap) > 0


def _box_loss(sides: Tensor, objects: Objects, gaussians: Tensor, stride: int) -> Tensor:
    """Return the mean over objects of the loss of their boxes, near their centres; the smaller of two has a place."""
    area = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1)
    order = area.argsort(descending=True)
    images, boxes, gaussians = objects.images[order], objects.boxes[order], gaussians[order]
    number, rows, columns = torch.nonzero(gaussians >= _NEAR, as_tuple=True)
    places = (images[number] * sides.shape[2] + rows) * sides.shape[3] + columns
    owner = places.new_full((len(sides) * sides[0, 0].numel(),), -1).scatter_reduce(0, places, number, "amax")
    kept = owner[places] == number
    number, rows, columns = number[kept], rows[kept], columns[kept]
    weight = gaussians[number, rows, columns]
    weight = weight / torch.zeros_like(area).index_add(0, number, weight)[number]
    found = boxes_of_sides(sides[images[number], :, rows, columns], rows, columns, stride)
    return ((1 - generalized_overlap(found, boxes[number])) * weight).sum() / max(1, len(boxes))

"""The boxes that an app has to find in the golden inputs of a detector, and how far each may be off.

In: the two maps of a detector, as ``edgeopt.tasks.peaks`` describes them, and their tolerances. Out: answers. A box is
certain if no difference that the tolerances allow can hide it. The other answers are boxes that such a difference can
bring out; a box that is none of the answers is a mistake of the app.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.bundle.golden import Array, GoldenAnswer, GoldenBox
from edgeopt.report.parts import Part, Span

_ROUNDING_PIXELS = 1e-3
_ROUNDING_SCORE = 1e-6
"""Of exponentials in float32, which an app may use."""

_Floats = NDArray[np.float64]


class BoxMaps(Part, frozen=True, kw_only=True):
    """How an app reads boxes from two outputs of a detector; each sample has the code, in a function of 20 lines.

    A place of the heat-map is an object of a class if its sigmoid is at least ``min_score``, it is higher than the four
    neighbours before it in reading order, and not lower than the four after it. Boxes are in pixels of the model's
    input; ``preprocessing`` of the input says how an image became one, and so how boxes go back.
    """

    heatmap: str
    """The output of logits, of shape (samples, classes, height, width)."""
    sides: str
    """The output of shape (samples, 4, height, width): natural logarithms of the distances from the middle of a place
    to the left, top, right and bottom of the box, in strides."""
    stride: int
    """Pixels of the input from one place to the next."""
    log_sides: Span
    """Logarithms are clipped to this range."""
    min_score: float
    """The least probability that an app shows: the task's ``min_score``. Its default is a usual value, and nothing was
    measured to choose it: a lower one finds more objects and more that are none. The score of the build counts all."""
    max_boxes: int
    """Of an image, those with the highest probability."""


class FoundBox(NamedTuple):
    """A box that was read from maps."""

    class_index: int
    score: float
    corners: Sequence[float]
    """Left, top, right and bottom in pixels of the model's input."""


def find_box_answers(
    maps: BoxMaps, outputs: Mapping[str, Array], tolerances: Mapping[str, float], labels: Sequence[str]
) -> tuple[GoldenAnswer, ...]:
    """Return the boxes of each sample, the certain ones first.

    A sample in which more places than ``max_boxes`` may be objects has no answers.

    Args:
        maps: How boxes are read.
        outputs: By name.
        tolerances: Of the outputs.
        labels: Of the classes; empty if they have no names.
    """
    heatmap, sides = outputs[maps.heatmap].astype(np.float64), outputs[maps.sides].astype(np.float64)
    answers = []
    for sample in range(len(heatmap)):
        reader = _Reader(maps, heatmap[sample], sides[sample], tolerances[maps.heatmap], tolerances[maps.sides])
        for index, box in reader.find_boxes():
            label = labels[index] if index < len(labels) else None
            answers.append(GoldenAnswer(output=maps.heatmap, sample=sample, class_index=index, label=label, box=box))
    return tuple(answers)


class _Place(NamedTuple):
    class_index: int
    row: int
    column: int


class _Reader:
    """Reads the boxes of a sample.

    Args:
        maps: How boxes are read.
        heatmap: Of shape (classes, height, width).
        sides: Of shape (4, height, width).
        slack: By how much a value of the heat-map may be off.
        side_slack: By how much a logarithm may be off.
    """

    def __init__(self, maps: BoxMaps, heatmap: _Floats, sides: _Floats, slack: float, side_slack: float) -> None:
        self.maps, self.heatmap, self.slack = maps, heatmap, slack
        self.reach = maps.stride * np.exp(np.clip(sides, *maps.log_sides))
        self.reach_slack = maps.stride * np.exp(np.clip(sides + side_slack, *maps.log_sides)) - self.reach
        self.least = math.log(maps.min_score / (1 - maps.min_score))
        self.padded = np.pad(heatmap, [(0, 0), (2, 2), (2, 2)], constant_values=-np.inf)

    def find_boxes(self) -> list[tuple[int, GoldenBox]]:
        """Return classes and boxes, the certain ones first."""
        places = [_Place(*place) for place in np.argwhere(self.heatmap >= self.least - self.slack).tolist()]
        places = [place for place in places if self._height(place) >= self._near(place).max() - 2 * self.slack]
        if len(places) > self.maps.max_boxes:
            return []
        certain = [place for place in places if self._is_certain(place)]
        covered = {other for place in certain for other in self._rivals(place)}
        uncertain = [place for place in places if place not in covered]
        return [(place.class_index, self._box(place, is_certain=True)) for place in certain] + [
            (place.class_index, self._box(place, is_certain=False)) for place in uncertain
        ]

    def _height(self, place: _Place) -> float:
        return float(self.heatmap[place])

    def _around(self, place: _Place) -> _Floats:
        """Return a copy of the 5x5 values around a place; outside of the map they are minus infinity."""
        return self.padded[place.class_index, place.row : place.row + 5, place.column : place.column + 5].copy()

    def _near(self, place: _Place) -> _Floats:
        return self._around(place)[1:4, 1:4]

    def _is_certain(self, place: _Place) -> bool:
        """Tell whether this place, or a neighbour whose box is about the same, is an object with any difference."""
        height, ring = self._height(place), self._around(place)
        ring[1:4, 1:4] = -np.inf  # a neighbour that outgrows the place may only lose to one of these
        near = self._near(place).ravel()
        is_peak = bool((height > near[:4]).all() and (height >= near[4:]).all())
        return is_peak and height >= self.least + self.slack and ring.max() < height - 2 * self.slack

    def _rivals(self, place: _Place) -> list[_Place]:
        """Return the place and the neighbours that may be higher than it elsewhere."""
        near = np.argwhere(self._near(place) >= self._height(place) - 2 * self.slack)
        return [
            _Place(place.class_index, place.row + row - 1, place.column + column - 1) for row, column in near.tolist()
        ]

    def _corners(self, place: _Place) -> _Floats:
        left, top, right, bottom = self.reach[:, place.row, place.column]
        x, y = ((number + 0.5) * self.maps.stride for number in (place.column, place.row))
        return np.array([x - left, y - top, x + right, y + bottom])

    def _box(self, place: _Place, *, is_certain: bool) -> GoldenBox:
        height, corners = self._height(place), self._corners(place)
        scores = [_sigmoid(height + change) for change in (-self.slack, 0.0, self.slack)]
        off = [
            float(np.abs(self._corners(other) - corners).max() + self.reach_slack[:, other.row, other.column].max())
            for other in (self._rivals(place) if is_certain else [place])
        ]
        left, top, right, bottom = corners.tolist()
        return GoldenBox(
            corners=(left, top, right, bottom),
            tolerance=max(off) + _ROUNDING_PIXELS,
            score=scores[1],
            score_tolerance=max(scores[1] - scores[0], scores[2] - scores[1]) + _ROUNDING_SCORE,
            is_certain=is_certain,
        )


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-min(60.0, max(-60.0, value))))


def count_wrong_boxes(answers: Sequence[GoldenAnswer], found: Sequence[FoundBox]) -> tuple[int, int]:
    """Return how many certain boxes of a sample are missing, and how many were found that are no answer."""
    pairs = [(answer, box) for answer in answers for box in found if _agree(answer, box)]
    matched, known = {id(answer) for answer, _ in pairs}, {id(box) for _, box in pairs}
    missing = sum(answer.box is not None and answer.box.is_certain and id(answer) not in matched for answer in answers)
    return missing, sum(id(box) not in known for box in found)


def _agree(answer: GoldenAnswer, found: FoundBox) -> bool:
    right = answer.box
    if right is None or answer.class_index != found.class_index:
        return False
    apart = max(abs(one - other) for one, other in zip(right.corners, found.corners, strict=True))
    return apart <= right.tolerance and abs(right.score - found.score) <= right.score_tolerance

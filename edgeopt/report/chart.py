"""Charts of the trials: values go in, positions come out, as plain numbers that a template draws as SVG.

The axes cover the trials and the limits. A trial far below the required score would squeeze all others into a line, so
it is drawn at the lower edge and marked as outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 18, 22, 50
"""Margins for labels, in the SVG's units."""
_MAX_BELOW_RATIO = 3.0
"""Distance below the limit, over the distance of the best score above it, from which a score is drawn at the edge."""
_MAX_STRETCH_RATIO = 4.0
"""A limit that is up to this ratio outside the trials' range stretches a logarithmic axis."""
_MARGIN_RATIO = 0.06
"""Of the axis, free around the outermost points."""

Role = Literal["baseline", "winner", "kept", "missed"]


@dataclass(frozen=True)
class Sample:
    """One trial, in data units."""

    number: int
    x: float
    y: float
    role: Role
    title: str


@dataclass(frozen=True)
class Mark:
    """One trial, in the SVG's units."""

    number: int
    x: float
    y: float
    role: Role
    title: str
    outside: bool
    label_anchor: Literal["start", "end"]


@dataclass(frozen=True)
class Tick:
    """A position on an axis, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve, in the SVG's units."""

    name: str
    points: tuple[tuple[float, float, str], ...]
    """Position, and the text that the mouse shows there."""

    @property
    def path(self) -> str:
        """The curve as an SVG path."""
        return "M" + "L".join(f"{x} {y}" for x, y, _ in self.points)


@dataclass(frozen=True)
class Chart:
    """Everything that a template needs for drawing."""

    key: str
    title: str
    description: str
    x_label: str
    y_label: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_limit: Tick | None
    y_limit: Tick | None
    """With its direction in words."""
    lines: tuple[Line, ...] = ()
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = _HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Axis:
    """One axis: its range, and its ends in the SVG's units."""

    low: float
    high: float
    logarithmic: bool
    start: float
    end: float

    def position(self, value: float) -> float:
        """Return the position of a value; values outside the range are put on the edge."""
        low, high, at = (self._scaled(number) for number in (self.low, self.high, value))
        share = min(1.0, max(0.0, (at - low) / (high - low)))
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, text: Callable[[float], str]) -> tuple[Tick, ...]:
        """Return round values within the range: 1, 2, 5 in each decade, or even steps."""
        values = _log_ticks(self.low, self.high) if self.logarithmic else _even_ticks(self.low, self.high)
        return tuple(Tick(at=self.position(value), text=text(value)) for value in values)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-30)) if self.logarithmic else value


def _log_axis(values: Sequence[float], limit: float | None, start: float, end: float) -> Axis:
    """Make a logarithmic axis for positive values, and for their limit if it is near."""
    logs = [math.log10(value) for value in values if value > 0] or [0.0]
    if limit is not None and 10 ** min(logs) / _MAX_STRETCH_RATIO <= limit <= 10 ** max(logs) * _MAX_STRETCH_RATIO:
        logs.append(math.log10(limit))
    low, high = min(logs), max(logs)
    free = max(_MARGIN_RATIO * (high - low), 0.05)
    return Axis(10 ** (low - free), 10 ** (high + free), logarithmic=True, start=start, end=end)


def _score_axis(scores: Sequence[float], limit: float | None, start: float, end: float, higher: bool = True) -> Axis:
    """Make a linear axis for scores, from a little beyond the limit to the best; ``higher`` if a high one is best."""
    if not higher:
        flipped = _score_axis([-score for score in scores], None if limit is None else -limit, start, end)
        return Axis(-flipped.high, -flipped.low, logarithmic=False, start=start, end=end)
    shown = [*scores, limit] if limit is not None else list(scores)
    low, high = min(shown), max(shown)
    if limit is not None and high > limit:
        low = max(low, high - (1 + _MAX_BELOW_RATIO) * (high - limit))
    free = _MARGIN_RATIO * (high - low) or 0.01 * abs(high) or 1.0
    return Axis(low - free, high + free, logarithmic=False, start=start, end=end)


def scatter(
    samples: Sequence[Sample],
    *,
    key: str,
    title: str,
    labels: tuple[str, str],
    texts: tuple[Callable[[float], str], Callable[[float], str]],
    limits: tuple[float | None, float | None],
    score_on_y: bool,
    higher: bool = True,
) -> Chart:
    """Lay out one chart: x is logarithmic, y is a score or logarithmic too.

    Args:
        samples: At least one trial.
        key: Names the chart in the page.
        title: Its heading.
        labels: Of the x and the y axis, with the unit.
        texts: Functions that write a value of x, and of y.
        limits: The limits on x and on y, drawn as lines; None draws no line.
        score_on_y: A linear axis for y, which outliers on its worse side do not stretch.
        higher: Whether a higher score is better.
    """
    x_limit, y_limit = limits
    x_axis = _log_axis([sample.x for sample in samples], x_limit, _LEFT, _WIDTH - _RIGHT)
    y_values = [sample.y for sample in samples]
    if score_on_y:
        y_axis = _score_axis(y_values, y_limit, _HEIGHT - _BOTTOM, _TOP, higher)
    else:
        y_axis = _log_axis(y_values, y_limit, _HEIGHT - _BOTTOM, _TOP)
    order: dict[Role, int] = {"missed": 0, "kept": 1, "baseline": 2, "winner": 3}
    marks = [_mark(sample, x_axis, y_axis) for sample in sorted(samples, key=lambda sample: order[sample.role])]
    return Chart(
        key=key,
        title=title,
        description=f"{len(samples)} trials: {labels[0]} across, {labels[1]} up.",
        x_label=labels[0],
        y_label=labels[1],
        marks=tuple(marks),
        x_ticks=x_axis.ticks(texts[0]),
        y_ticks=y_axis.ticks(texts[1]),
        x_limit=_limit(x_axis, x_limit, "at most", texts[0]),
        y_limit=_limit(y_axis, y_limit, "at least" if score_on_y and higher else "at most", texts[1]),
    )


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    key: str,
    title: str,
    description: str,
    labels: tuple[str, str],
    texts: tuple[Callable[[float], str], Callable[[float], str]],
) -> Chart:
    """Lay out curves; x is a share of 0..1, y is logarithmic.

    Args:
        series: Name to its points; at least one.
        key: Names the chart in the page.
        title: Its heading.
        description: Of the chart, for readers who cannot see it.
        labels: Of the x and the y axis.
        texts: Functions that write a value of x, and of y.
    """
    x_axis = Axis(0.0, 1.0, logarithmic=False, start=_LEFT, end=_WIDTH - _RIGHT)
    y_axis = _log_axis([y for points in series.values() for _, y in points], None, _HEIGHT - _BOTTOM, _TOP)
    lines = [
        Line(
            name,
            tuple(
                (x_axis.position(x), y_axis.position(y), f"{name}: {texts[1](y)} at {texts[0](x)}") for x, y in points
            ),
        )
        for name, points in series.items()
    ]
    return Chart(
        key=key, title=title, description=description, x_label=labels[0], y_label=labels[1], marks=(),
        x_ticks=x_axis.ticks(texts[0]), y_ticks=y_axis.ticks(texts[1]), x_limit=None, y_limit=None,
        lines=tuple(lines),
    )  # fmt: skip


def _mark(sample: Sample, x_axis: Axis, y_axis: Axis) -> Mark:
    x, y = x_axis.position(sample.x), y_axis.position(sample.y)
    return Mark(
        number=sample.number,
        x=x,
        y=y,
        role=sample.role,
        title=sample.title,
        outside=not y_axis.low <= sample.y <= y_axis.high,
        label_anchor="end" if x > (_LEFT + _WIDTH) / 2 else "start",
    )


def _limit(axis: Axis, limit: float | None, direction: str, text: Callable[[float], str]) -> Tick | None:
    """Position a limit's line; None if it is outside the axis (the table of the proof has it)."""
    if limit is None or not axis.low <= limit <= axis.high:
        return None
    return Tick(at=axis.position(limit), text=f"{direction} {text(limit)}")


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) > 0.5 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


def _even_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(step * decade for step in (1, 2, 5, 10) if step * decade >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]

"""Scatter charts of the trials, laid out as plain numbers that a template draws as SVG.

Both axes run over what the trials and the limits need. A trial far below the score that is asked for would squeeze all
others into a line, so it is drawn at the lower edge, marked as lying outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 22, 50
"""Margins for labels, in the SVG's own units."""
FAR_BELOW = 3.0
"""A score this many times as far below the best as the limit is, is drawn at the edge."""
NEAR = 4.0
"""A limit at most this many times outside of what the trials span stretches a logarithmic axis."""
_ROOM = 0.06
"""Free share of the axis around the outermost points."""

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
    """A place on an axis and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve, in the SVG's units."""

    name: str
    points: tuple[tuple[float, float, str], ...]
    """Place, and what it says where it is pointed at."""

    @property
    def path(self) -> str:
        """Return the curve as SVG's path."""
        return "M" + "L".join(f"{x} {y}" for x, y, _ in self.points)


@dataclass(frozen=True)
class Chart:
    """Everything that a template needs to draw."""

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
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Axis:
    """One axis: its range, and how a value becomes a place."""

    low: float
    high: float
    logarithmic: bool
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return the place of a value; values outside land on the edge."""
        low, high, at = (self._scaled(number) for number in (self.low, self.high, value))
        share = min(1.0, max(0.0, (at - low) / (high - low)))
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, text: Callable[[float], str]) -> tuple[Tick, ...]:
        """Return round values within the range: 1, 2, 5 in each decade, or even steps."""
        values = _log_ticks(self.low, self.high) if self.logarithmic else _even_ticks(self.low, self.high)
        return tuple(Tick(at=self.place(value), text=text(value)) for value in values)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-30)) if self.logarithmic else value


def log_axis(values: Sequence[float], limit: float | None, start: float, end: float) -> Axis:
    """Lay a logarithmic axis over positive values, and over their limit where that is near."""
    logs = [math.log10(value) for value in values if value > 0] or [0.0]
    if limit is not None and 10 ** min(logs) / NEAR <= limit <= 10 ** max(logs) * NEAR:
        logs.append(math.log10(limit))
    low, high = min(logs), max(logs)
    free = max(_ROOM * (high - low), 0.05)
    return Axis(10 ** (low - free), 10 ** (high + free), logarithmic=True, start=start, end=end)


def score_axis(scores: Sequence[float], limit: float | None, start: float, end: float) -> Axis:
    """Lay an even axis over scores, from little below the limit up to the best."""
    wanted = [*scores, limit] if limit is not None else list(scores)
    low, high = min(wanted), max(wanted)
    if limit is not None and high > limit:
        low = max(low, high - (1 + FAR_BELOW) * (high - limit))
    free = _ROOM * (high - low) or 0.01 * abs(high) or 1.0
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
) -> Chart:
    """Lay out one chart: x is logarithmic, y is a score or logarithmic too.

    Args:
        samples: At least one trial.
        key: Names the chart within the page.
        title: Its heading.
        labels: Of the x and the y axis, with the unit.
        texts: How a value of x and of y is written.
        limits: The budget on x and on y, drawn as lines; None draws none.
        score_on_y: An even axis for y, which outliers below do not stretch.
    """
    x_limit, y_limit = limits
    x_axis = log_axis([sample.x for sample in samples], x_limit, LEFT, WIDTH - RIGHT)
    y_values = [sample.y for sample in samples]
    if score_on_y:
        y_axis = score_axis(y_values, y_limit, HEIGHT - BOTTOM, TOP)
    else:
        y_axis = log_axis(y_values, y_limit, HEIGHT - BOTTOM, TOP)
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
        y_limit=_limit(y_axis, y_limit, "at least" if score_on_y else "at most", texts[1]),
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
    """Lay out curves over a share of 0..1; y is logarithmic.

    Args:
        series: Name to its points; at least one.
        key: Names the chart within the page.
        title: Its heading.
        description: What it shows, for those who do not see it.
        labels: Of the x and the y axis.
        texts: How a value of x and of y is written.
    """
    x_axis = Axis(0.0, 1.0, logarithmic=False, start=LEFT, end=WIDTH - RIGHT)
    y_axis = log_axis([y for points in series.values() for _, y in points], None, HEIGHT - BOTTOM, TOP)
    lines = [
        Line(
            name,
            tuple((x_axis.place(x), y_axis.place(y), f"{name}: {texts[1](y)} at {texts[0](x)}") for x, y in points),
        )
        for name, points in series.items()
    ]
    return Chart(
        key=key, title=title, description=description, x_label=labels[0], y_label=labels[1], marks=(),
        x_ticks=x_axis.ticks(texts[0]), y_ticks=y_axis.ticks(texts[1]), x_limit=None, y_limit=None,
        lines=tuple(lines),
    )  # fmt: skip


def _mark(sample: Sample, x_axis: Axis, y_axis: Axis) -> Mark:
    x, y = x_axis.place(sample.x), y_axis.place(sample.y)
    return Mark(
        number=sample.number,
        x=x,
        y=y,
        role=sample.role,
        title=sample.title,
        outside=sample.y < y_axis.low,
        label_anchor="end" if x > (LEFT + WIDTH) / 2 else "start",
    )


def _limit(axis: Axis, limit: float | None, direction: str, text: Callable[[float], str]) -> Tick | None:
    """Place a limit's line; a limit that lies outside of what the trials span is left to the proof's table."""
    if limit is None or not axis.low <= limit <= axis.high:
        return None
    return Tick(at=axis.place(limit), text=f"{direction} {text(limit)}")


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) > 0.5 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


def _even_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(step * decade for step in (1, 2, 5, 10) if step * decade >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]

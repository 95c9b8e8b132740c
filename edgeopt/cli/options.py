"""Options that several commands share: the limits, each a number or ``none``, and how a file is run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgeopt.config.limits import LimitOptions, check_options


def parse_limit(text: str) -> float | str:
    """Return the number, or ``"none"``.

    Raises:
        click.BadParameter: it is neither.
    """
    if text == "none":
        return text
    try:
        return float(text)
    except ValueError:
        advice = " Write a share: one percent is 0.01." if text.endswith("%") else ""
        raise click.BadParameter(f"'{text}' is neither a number nor 'none'.{advice}") from None


_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("--latency-ms", parse_limit, "Upper limit of latency, at the target's percentile and batch size."),
    ("--memory-mb", parse_limit, "Upper limit of peak memory, in millions of bytes."),
    ("--size-mb", parse_limit, "Upper limit of the file's size, in millions of bytes."),
    ("--max-drop", parse_limit, "How far the score may fall below the trained network's; 0.01 is one point."),
    ("--min-score", parse_limit, "Lower limit of the score."),
    ("--throughput", parse_limit, "Lower limit of samples a second, at the target's batch size."),
    ("--size-metric", click.Choice(["file", "download"]), "Which size counts: the file's, or the file's deflated."),
)


FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of where and how a file runs."""
    for option in reversed(
        (
            click.option("--device", metavar="URI", help="Where to run; the target's device without it."),
            click.option(
                "--batch-size", type=click.IntRange(min=1), metavar="N", help="Samples a run; the target's without it."
            ),
            click.option(
                "--inputs", type=FILE, metavar="FILE", help="A .npz with one array for each input; random without it."
            ),
            click.option(
                "--allow-fallback", multiple=True, metavar="PROVIDER", help="May run where the target's cannot."
            ),
        )
    ):
        function = option(function)
    return function


def limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of limits; they arrive as one argument, ``limits: LimitOptions``."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        limits = LimitOptions(**{name: kwargs.pop(name) for name in LimitOptions.__struct_fields__})
        check_options(limits, "--")
        return function(*args, limits=limits, **kwargs)

    wrapped: Callable[..., Any] = wrapper
    for flag, kind, text in reversed(_OPTIONS):
        metavar = "NUMBER|none" if kind is parse_limit else None
        wrapped = click.option(flag, type=kind, metavar=metavar, default=None, help=text)(wrapped)
    return wrapped

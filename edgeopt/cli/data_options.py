"""Options for the data of a TASK that is an ``.onnx`` file: what they are, and how they become its inputs."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import click

from edgeopt.records.given_data import COLOR_ORDERS, IMAGE_LAYOUTS, DataOptions

DATA_HELP = "A .npz (rows by input name), a .npy for a single input, a folder of samples, or file.py:function."


def _parse_numbers(text: str) -> tuple[float, ...]:
    """Return ``0.485,0.456,0.406`` as numbers.

    Raises:
        click.BadParameter: it is something else.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise click.BadParameter(f"'{text}' is neither a number nor several with commas, such as 0.485,0.456,0.406.")
    return numbers


def _parse_deviations(text: str) -> tuple[float, ...]:
    """Return numbers that can be divided by.

    Raises:
        click.BadParameter: they are something else.
    """
    numbers = _parse_numbers(text)
    if min(numbers) <= 0:
        raise click.BadParameter(f"'{text}' has to be above 0: pixels are divided by it.")
    return numbers


def _parse_size(text: str) -> tuple[int, int]:
    """Return ``480x640`` as height and width.

    Raises:
        click.BadParameter: it is something else.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise click.BadParameter(f"'{text}' is not HEIGHTxWIDTH, such as 480x640, or one number for both.")
    return int(match[1]), int(match[2] or match[1])


def _parse_state(text: str) -> tuple[str, str]:
    """Return the input and the output of ``state=next_state``.

    Raises:
        click.BadParameter: it is something else.
    """
    name, separator, output = text.partition("=")
    if not separator or not name or not output:
        raise click.BadParameter(f"'{text}' is not INPUT=OUTPUT, such as h=hn.")
    return name, output


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; they arrive as one argument, ``data_options: DataOptions``."""

    @functools.wraps(function)
    def wrapper(*args: Any, mean: Any, std: Any, size: Any, layout: Any, color: Any, state: Any, **kwargs: Any) -> Any:
        given = DataOptions(mean=mean, std=std, size=size, layout=layout, color=color, states=dict(state))
        return function(*args, data_options=given, **kwargs)

    wrapped: Callable[..., Any] = wrapper
    for option in reversed(
        (
            click.option(
                "--mean",
                type=_parse_numbers,
                metavar="N[,N,N]",
                help="Mean of pixels of 0 to 1 (of 0 to 255 if above 1), for a folder of images.",
            ),
            click.option("--std", type=_parse_deviations, metavar="N[,N,N]", help="Their standard deviation."),
            click.option("--size", type=_parse_size, metavar="HxW", help="Size to which images are resized."),
            click.option("--layout", type=click.Choice(IMAGE_LAYOUTS), help="Order of an image's dimensions."),
            click.option("--color", type=click.Choice(COLOR_ORDERS), help="Order of its channels (default: rgb)."),
            click.option(
                "--state",
                type=_parse_state,
                multiple=True,
                metavar="INPUT=OUTPUT",
                help="Feed this output back into this input over each sample, which is then a sequence of chunks.",
            ),
        )
    ):
        wrapped = option(wrapped)
    return wrapped

"""Options that several commands share: limits, how to run a file, debug output, the data of a given file."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from edgeopt.config.limits import LimitOptions, check_options
from edgeopt.records.preprocessing import COLOR_ORDERS, IMAGE_LAYOUTS, DataOptions
from edgeopt.records.scoring import SCORE_NAMES, ScoreWish
from edgeopt.records.unseen_rows import UnseenRows
from edgeopt.records.width_rules import WidthRules

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


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
        advice = " Write a ratio: one percent is 0.01." if text.endswith("%") else ""
        raise click.BadParameter(f"'{text}' is neither a number nor 'none'.{advice}") from None


_LIMITS: tuple[tuple[str, Any, str], ...] = (
    ("--latency-ms", parse_limit, "Maximum latency, at the target's percentile and batch size."),
    ("--memory-mb", parse_limit, "Maximum peak memory, in millions of bytes."),
    (
        "--size-mb",
        parse_limit,
        "Maximum file size, in millions of bytes; with the runtime's if the target has runtime_size_bytes.",
    ),
    (
        "--max-drop",
        parse_limit,
        "How much worse than the trained network's the score may be, in its unit; 0.01 is one point of accuracy.",
    ),
    ("--min-score", parse_limit, "Worst score allowed: a minimum, or for an error a maximum."),
    (
        "--max-class-drop",
        parse_limit,
        "How much less often the answer may be right in any class of the labels; 0.05 is five points.",
    ),
    ("--max-flips", parse_limit, "Share of the trained network's answers that may change, for better or worse."),
    ("--throughput", parse_limit, "Minimum samples per second, at the target's batch size."),
    (
        "--confidence",
        float,
        "Limits on times and on the drop are judged by the worse end of an interval; this is its confidence "
        "(default: the target's, 0.95).",
    ),
    (
        "--size-metric",
        click.Choice(["file", "download"]),
        "The size that counts: of the file, or of the deflated file.",
    ),
    (
        "--prefer",
        click.Choice(["size", "latency", "memory"]),
        "What the file that is picked has least of, among those within the limits (default: the target's, size).",
    ),
)


def limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for limits; they arrive as one argument, ``limits: LimitOptions``.

    With ``score_options`` above it, it is checked later whether limits on the score look like percentages: an error may
    be above 1.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        limits = LimitOptions(**{name: kwargs.pop(name) for name in LimitOptions.__struct_fields__})
        check_options(limits, "--", any_unit="score_wish" in kwargs)
        return function(*args, limits=limits, **kwargs)

    wrapped: Callable[..., Any] = wrapper
    for flag, kind, text in reversed(_LIMITS):
        metavar = "NUMBER|none" if kind is parse_limit else None
        wrapped = click.option(flag, type=kind, metavar=metavar, default=None, help=text)(wrapped)
    return wrapped


def score_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for the score of a given file; they arrive as one argument, ``score_wish``."""

    @functools.wraps(function)
    def wrapper(*args: Any, score: Any, score_output: str | None, ignore_label: int | None, **kwargs: Any) -> Any:
        wish = ScoreWish(score=score, output=score_output, ignored=ignore_label)
        return function(*args, score_wish=wish, **kwargs)

    ignoring = click.option(
        "--ignore-label",
        type=int,
        metavar="N",
        help="A label of --data that does not count, as of unlabelled positions.",
    )(wrapper)
    named = click.option(
        "--score-output", metavar="NAME", help="The output that the labels of --data judge, if there are several."
    )(ignoring)
    return click.option(
        "--score",
        type=click.Choice(SCORE_NAMES),
        metavar="KIND",
        help=f"How to score a TASK that is an .onnx file: {', '.join(SCORE_NAMES)} (default: by outputs and labels).",
    )(named)


def _numbers_of(form: str, example: str) -> Callable[[str], tuple[str, int]]:
    """Return a parser of ``NAME=N`` into the name and the number; ``form`` and ``example`` are for its errors."""

    def parse(text: str) -> tuple[str, int]:
        name, _, number = text.rpartition("=")
        if not name or not number.isdecimal():
            raise click.BadParameter(f"'{text}' is not {form}, such as '{example}'.")
        return name, int(number)

    return parse


def channel_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for channels that stay; they arrive as one argument, ``width_rules``."""

    @functools.wraps(function)
    def wrapper(*args: Any, keep: tuple[str, ...], min_width: tuple[tuple[str, int], ...], **kwargs: Any) -> Any:
        return function(*args, width_rules=WidthRules(keep=keep, min_widths=dict(min_width)), **kwargs)

    widths = click.option(
        "--min-width",
        multiple=True,
        type=_numbers_of("GLOB=N", "stem.*=16"),
        metavar="GLOB=N",
        help="Least number of output channels of the layers whose names match; may be repeated.",
    )(wrapper)
    return click.option(
        "--keep",
        multiple=True,
        metavar="GLOB",
        help="Cut no channel of the parameters or modules whose names match, such as 'head.*'; may be repeated.",
    )(widths)


def unseen_row_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for rows that no training sample reads; they arrive as ``unseen_rows``."""

    @functools.wraps(function)
    def wrapper(*args: Any, drop_unseen_rows: bool, unknown_id: tuple[tuple[str, int], ...], **kwargs: Any) -> Any:
        rules = UnseenRows(drop=drop_unseen_rows, unknown_ids=dict(unknown_id))
        return function(*args, unseen_rows=rules, **kwargs)

    unknown = click.option(
        "--unknown-id",
        multiple=True,
        type=_numbers_of("INPUT=N", "tokens=100"),
        metavar="INPUT=N",
        help="With --drop-unseen-rows: id whose row an input's other ids read (default: the mean of the dropped rows).",
    )(wrapper)
    return click.option(
        "--drop-unseen-rows",
        is_flag=True,
        help="Also try files without the embedding rows that no training sample reads; new words may lose by it.",
    )(unknown)


def further_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for when a finished search goes on; they arrive as ``further``."""

    @functools.wraps(function)
    def wrapper(*args: Any, more: bool, no_train: bool, **kwargs: Any) -> Any:
        if more and no_train:
            raise click.UsageError("--more trains further candidates, and --no-train trains none: give one of them.")
        return function(*args, further="always" if more else "never" if no_train else "if needed", **kwargs)

    only_deciding = click.option(
        "--no-train", is_flag=True, help="Only decide among the trials of this workspace; train nothing."
    )(wrapper)
    return click.option(
        "--more", is_flag=True, help="Train further candidates after a finished search, even if one keeps the limits."
    )(only_deciding)


device_option = click.option("--device", "device_uri", metavar="URI", help="Device to run on (default: the target's).")

fallback_option = click.option(
    "--allow-fallback",
    multiple=True,
    metavar="PROVIDER",
    help="Let this execution provider run the nodes that the target's can't; may be repeated.",
)

estimate_option = click.option(
    "--estimate", is_flag=True, help="Estimate the target's latency from its calibration, without the device."
)


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for how to run a file, and on which device."""
    for option in (
        fallback_option,
        click.option(
            "--inputs",
            metavar="DATA",
            help="A .npz (one array per input), a .npy, a folder of samples, or file.py:function (default: made up).",
        ),
        click.option(
            "--shape",
            "shapes",
            multiple=True,
            metavar="NAME=1x3x480x640",
            help="Shape of a made-up input with dynamic dimensions; may be repeated.",
        ),
        click.option(
            "--batch-size", type=click.IntRange(min=1), metavar="N", help="Samples per run (default: the target's)."
        ),
        device_option,
    ):
        function = option(function)
    return function


def _start_logging(context: click.Context, _option: click.Parameter, verbose: bool) -> None:
    if verbose:
        from edgeopt.logs import log_to_stderr

        context.with_resource(log_to_stderr())


verbose_option = click.option(
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_start_logging,
    help="Print debug messages on stderr.",
)


def refuse_unread_options(names: Iterable[str], advice: str) -> None:
    """Refuse options that have no effect.

    Args:
        names: Of the options that were given, as the command line calls them; if there are none, nothing is refused.
        advice: What they are for, and what to add; the end of the sentence.

    Raises:
        click.UsageError: there are some.
    """
    found = " and ".join(names)
    if found:
        raise click.UsageError(f"{found} would change nothing: {advice}")


def refuse_unread_data_options(score: str | None, options: DataOptions) -> None:
    """Refuse options that say how the data of a given file are read if no such file is scored.

    Raises:
        click.UsageError: there are some.
    """
    advice = "such options say how --score MODEL.onnx reads its --data. Add these two."
    refuse_unread_options(options.given if score is None else (), advice)


# -- the data of a given file -------------------------------------------------------------------------------------

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

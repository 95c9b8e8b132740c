"""The limits of a build: options in people's units (ms, MB, ratios), and which source decides each one."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from edgeopt.errors import ConfigError
from edgeopt.records.base import Record
from edgeopt.records.budget import Budget, Preference, SizeMetric
from edgeopt.records.profile import Profile

Waived = Literal["none"]

BYTES_PER_MB = 1_000_000
"""A megabyte is a million bytes, as in app stores; 1,048,576 bytes is a mebibyte."""


class LimitOptions(Record, frozen=True, kw_only=True):
    """Limits as people write them, on the command line or in ``edgeopt.toml``.

    A number is a limit, ``"none"`` waives it, and ``None`` leaves the decision to the next source.
    """

    latency_ms: float | Waived | None = None
    memory_mb: float | Waived | None = None
    size_mb: float | Waived | None = None
    max_drop: float | Waived | None = None
    min_score: float | Waived | None = None
    max_class_drop: float | Waived | None = None
    max_flips: float | Waived | None = None
    """Share of the trained network's answers."""
    throughput: float | Waived | None = None
    """Samples a second."""
    confidence: float | None = None
    """Of the intervals whose worse end has to keep a limit, in 0..1."""
    size_metric: SizeMetric | None = None
    prefer: Preference | None = None
    """What the winner has least of; not a limit, but chosen with them."""


def resolve_budget(
    profile: Profile,
    task_budget: Budget | None,
    project_limits: LimitOptions | None,
    cli_limits: LimitOptions | None,
    *,
    any_unit: bool = False,
) -> Budget:
    """Take each limit from the first source that sets it: command line, ``edgeopt.toml``, the task's budget, profile.

    A task's own budget is complete, so it replaces all of the profile's limits; options replace single limits. The size
    of the runtime stays the profile's unless the task's budget states another one.

    Args:
        profile: The target.
        task_budget: The task's ``budgets[target]``, in the task's own unit of score.
        project_limits: ``[limits]`` of ``edgeopt.toml``.
        cli_limits: Options of the command line.
        any_unit: Whether the score is an error in the unit of the labels, so that limits on it may be above 1.

    Raises:
        ConfigError: a limit is not finite, not positive, or looks like a percentage; the runtime leaves no room.
    """
    budget = profile.limits
    if task_budget is not None:
        check_budget(task_budget, f"the task's own budget for '{profile.name}'")
        runtime_size_bytes = task_budget.runtime_size_bytes or budget.runtime_size_bytes
        budget = msgspec.structs.replace(task_budget, runtime_size_bytes=runtime_size_bytes)
    if project_limits is not None:
        budget = _replace(budget, project_limits, "edgeopt.toml, [limits]: ", any_unit=any_unit)
    if cli_limits is not None:
        budget = _replace(budget, cli_limits, "--", any_unit=any_unit)
    if budget.max_size_bytes is not None and (budget.max_deciding_bytes or 0) <= 0:
        raise ConfigError(
            f"the target '{profile.name}' states a runtime of {budget.runtime_size_bytes:,} bytes, and the size limit "
            f"for the model with it is {budget.max_size_bytes:,} bytes: no model fits. Raise the limit (--size-mb), or "
            "correct runtime_size_bytes in [limits]."
        )
    return budget


def check_options(options: LimitOptions, prefix: str, *, any_unit: bool = False) -> None:
    """Refuse limits that make no sense.

    Args:
        options: As the user wrote them.
        prefix: ``--`` for the command line, which spells names with hyphens; otherwise the name of a file.
        any_unit: Whether scores are errors in the unit of the labels, which may be above 1.

    Raises:
        ConfigError: a limit is not finite, not positive, or looks like a percentage.
    """
    for name in ("latency_ms", "memory_mb", "size_mb", "throughput"):
        value = getattr(options, name)
        if isinstance(value, (int, float)) and not 0 < value < math.inf:
            option = _format_option(name, prefix)
            raise ConfigError(f"{option} {value:g} is not above zero; write 'none' to waive that limit.")
    _check_score_limit("max_drop", options.max_drop, prefix, any_unit)
    for name in ("max_class_drop", "max_flips"):
        _check_ratio(name, getattr(options, name), prefix)
    if options.max_class_drop == 0:
        option = _format_option("max_class_drop", prefix)
        raise ConfigError(
            f"{option} 0 cannot be shown by any number of samples; write 0.05 for five points of a class."
        )
    _check_score_limit("min_score", options.min_score, prefix, any_unit)
    if options.confidence is not None and not 0.5 <= options.confidence < 1:
        option, value = _format_option("confidence", prefix), options.confidence
        advice = f"write {value / 100:g}" if 50 <= value < 100 else "95 in 100 are 0.95, the default"
        raise ConfigError(f"{option} {value:g} is not from 0.5 to below 1; {advice}.")


def check_budget(budget: Budget, source: str) -> None:
    """Refuse a complete budget with a value that no limit can have.

    Scores are in the task's own unit here, so only their sign and finiteness can be checked.

    Raises:
        ConfigError: names ``source`` and the key.
    """
    for name in ("max_latency_ms", "min_throughput_per_s", "max_peak_memory_bytes", "max_size_bytes"):
        value = getattr(budget, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{source}: {name} is {value}; a limit is above zero and finite, or waived by name.")
    if budget.runtime_size_bytes is not None and budget.runtime_size_bytes <= 0:
        raise ConfigError(
            f"{source}: runtime_size_bytes is {budget.runtime_size_bytes}; it is the size of the runtime that the app "
            "ships, above zero. Leave it out if the size limit is about the model alone."
        )
    drop, score = budget.max_score_drop, budget.min_score
    if drop is not None and not 0 <= drop < math.inf:
        raise ConfigError(f"{source}: max_score_drop is {drop}; the allowed drop is zero or more, and finite.")
    for name in ("max_class_drop", "max_flip_ratio"):
        ratio = getattr(budget, name)
        if ratio is not None and not 0 <= ratio < 1:
            raise ConfigError(f"{source}: {name} is {ratio}; it is a share of answers, from 0 to 1.")
    if budget.max_class_drop == 0:
        raise ConfigError(f"{source}: max_class_drop is 0, which no number of samples can show; 0.05 is five points.")
    if score is not None and not math.isfinite(score):
        raise ConfigError(f"{source}: min_score is {score}; a score is a finite number.")
    if not 0.5 <= budget.confidence < 1:
        raise ConfigError(f"{source}: confidence is {budget.confidence}; it has to be from 0.5 to below 1.")
    if not 1 <= budget.latency_percentile <= 99:
        raise ConfigError(f"{source}: latency_percentile is {budget.latency_percentile}; it has to be from 1 to 99.")
    if budget.batch_size < 1:
        raise ConfigError(f"{source}: batch_size is {budget.batch_size}; it has to be 1 or more.")


def _check_ratio(name: str, value: float | Waived | None, prefix: str) -> None:
    """Refuse a share of answers that is none, or that was written in percent."""
    if value is None or value == "none" or 0 <= value < 1:
        return
    option = _format_option(name, prefix)
    advice = f"write {value / 100:g}" if 1 <= value < 100 else "write 'none' to waive that limit"
    raise ConfigError(
        f"{option} {value:g} is not a share of answers from 0 to 1, such as 0.02 for two in 100; {advice}."
    )


def _check_score_limit(name: str, value: float | Waived | None, prefix: str, any_unit: bool) -> None:
    """Refuse a score limit that was written in percent."""
    if value is None or value == "none":
        return
    option = _format_option(name, prefix)
    if not math.isfinite(value):
        raise ConfigError(f"{option} {value} is not a finite number; write 'none' to waive that limit.")
    if name == "max_drop" and value < 0:
        raise ConfigError(f"{option} {value:g} is negative; it is how far the score may fall: 0.01 is one point.")
    if value >= 1 and not any_unit and not (name == "min_score" and value == 1):
        raise ConfigError(
            f"{option} {value:g} looks like a percentage: scores go from 0 to 1 and one point is 0.01, so write "
            f"{value / 100:g}. (A task whose score is an error says so with score_direction = 'lower'; one that scores "
            "in another unit sets limits in its own 'budgets'; for the error of an .onnx model, name it with --score "
            "mae, mse or rmse.)"
        )


def _replace(budget: Budget, options: LimitOptions, prefix: str, *, any_unit: bool = False) -> Budget:
    """Return ``budget`` with the limits that ``options`` sets."""
    check_options(options, prefix, any_unit=any_unit)
    in_bytes = {"max_peak_memory_bytes": options.memory_mb, "max_size_bytes": options.size_mb}
    in_same_unit = {
        "max_latency_ms": options.latency_ms,
        "max_score_drop": options.max_drop,
        "min_score": options.min_score,
        "min_throughput_per_s": options.throughput,
        "max_class_drop": options.max_class_drop,
        "max_flip_ratio": options.max_flips,
    }
    changes: dict[str, float | int | str | None] = {}
    for name, value in in_bytes.items():
        if value is not None:
            changes[name] = None if value == "none" else max(1, round(value * BYTES_PER_MB))
    for name, value in in_same_unit.items():
        if value is not None:
            changes[name] = None if value == "none" else float(value)
    for name in ("size_metric", "prefer", "confidence"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    return msgspec.structs.replace(budget, **changes)


def _format_option(name: str, prefix: str) -> str:
    return f"--{name.replace('_', '-')}" if prefix == "--" else f"{prefix}{name} ="

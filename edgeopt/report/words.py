"""Numbers and recipes in words. Every rounding of edgeopt's results happens here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from edgeopt.records.profile import Runtime
from edgeopt.records.recipe import (
    Compact,
    Distill,
    Float16,
    FlushDenormals,
    FuseQLinear,
    GraphStep,
    LowRank,
    Prune,
    Quantize,
    QuantizeAware,
    QuantizeDynamic,
    QuantizeStep,
    QuantizeWeights,
    Recipe,
    Simplify,
    Sparsify,
    Student,
    TorchStep,
)

Unit = Literal["ms", "bytes", "per_s", "score"]

MISSING = "—"
NBSP = "\u00a0"
"""A space that no line is broken at."""
MOST_DIGITS = 9
"""Enough to tell apart any two numbers that a limit can turn on."""


def significant(value: float, digits: int = 3) -> str:
    """Round to significant digits, without an exponent: 0.20134 is ``0.201``, 1234.5 is ``1,234``."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = int(f"{rounded:e}".split("e")[1])
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def size(number_of_bytes: float, digits: int = 3) -> str:
    """Write bytes as people do: ``2.83 MB``, ``84.1 kB``, ``900 B`` (decimal units)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number_of_bytes) >= factor:
            return f"{significant(number_of_bytes / factor, digits)} {unit}"
    return f"{number_of_bytes:.0f} B"


def score(value: float, digits: int = 3) -> str:
    """Write a score or a difference of scores: four decimals up to ten, two above."""
    decimals = digits + 1 if abs(value) < 10 else max(2, digits - 1)
    return f"{value:.{decimals}f}".replace("-", "−")


def quantity(value: float | None, unit: Unit, digits: int = 3) -> str:
    """Write a number with its unit, a dash where there is none."""
    if value is None:
        return MISSING
    match unit:
        case "ms":
            return f"{significant(value, digits)} ms"
        case "bytes":
            return size(value, digits)
        case "per_s":
            return f"{significant(value, digits)} / s"
        case "score":
            return score(value, digits)


def distinguishable(found: float, allowed: float, unit: Unit) -> str:
    """Write a number with as many digits as it takes to see that it is not the limit: 1.0004 ms beside 1 ms."""
    digits = next(
        (
            digits
            for digits in range(3, MOST_DIGITS)
            if quantity(found, unit, digits) != quantity(allowed, unit, digits)
        ),
        3,
    )
    return quantity(found, unit, digits)


def limit(value: float, unit: Unit) -> str:
    """Write a limit as it was set, without zeros that nobody wrote: ``1 ms``, ``0.5 MB``, ``0.01``."""
    number, _, suffix = quantity(value, unit, MOST_DIGITS).partition(" ")
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return f"{number} {suffix}".rstrip()


def times(ratio: float) -> str:
    """Write a ratio: ``12.3×``."""
    return f"{significant(ratio)}×"


def tick(value: float) -> str:
    """Write a value on an axis, as short as it goes."""
    return f"{value:,.6g}"


def percent(ratio: float) -> str:
    """Write a share of 0..1: ``23 %``; ``0.4 %`` where it is small."""
    return f"{100 * ratio:.1f}{NBSP}%" if 0 < abs(ratio) < 0.0995 else f"{100 * ratio:.0f}{NBSP}%"


def duration(seconds: float) -> str:
    """Write a time that people waited: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``1 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def listed(words: Sequence[str]) -> str:
    """Join words: ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def plural(count: int, noun: str) -> str:
    """Write ``1 trial``, ``3 trials``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def recipe(steps: Recipe, parameters_ratio: float | None) -> str:
    """Put a recipe into words, without the steps that change no number: ``pruned to 23 % of the parameters, int8``.

    Args:
        steps: The recipe.
        parameters_ratio: Parameters left of the baseline's, 0..1; None where unknown.
    """
    words = [word for step in (*steps.torch_steps, *steps.graph_steps) if (word := _step(step, parameters_ratio))]
    if not steps.torch_steps:
        words.insert(0, "as trained")
    if not any(isinstance(step, QuantizeStep | Float16) for step in steps.graph_steps):
        words.append("float32")
    return ", ".join(words)


def _step(step: TorchStep | GraphStep, parameters_ratio: float | None) -> str | None:
    match step:
        case Student(name=name):
            return f"student “{name}”"
        case Prune(importance=importance):
            left = "" if parameters_ratio is None else f" to {percent(parameters_ratio)} of the parameters"
            return f"pruned{left} ({importance.method})"
        case Sparsify(ratio=ratio, method=method):
            return f"{percent(ratio)} of the weights zero ({method})"
        case LowRank(layers=layers):
            return f"{plural(len(layers), 'layer')} of low rank"
        case QuantizeAware():
            return "trained for int8"
        case Distill():
            return _distilled(step)
        case Quantize(reduce_range=reduce_range, float_nodes=float_nodes):
            words = ["7-bit weights"] if reduce_range else []
            words += ["equalized"] if step.equalize else []
            words += ["bias-corrected"] if step.correct_bias else []
            words += [f"{plural(len(float_nodes), 'node')} in float"] if float_nodes else []
            return f"int8 ({', '.join(words)})" if words else "int8"
        case QuantizeDynamic():
            return "dynamic int8"
        case QuantizeWeights(bits=bits):
            return f"{bits}-bit weights in the products, float32 between"
        case Float16():
            return "float16"
        case Simplify() | FlushDenormals() | FuseQLinear() | Compact():
            return None


def _distilled(step: Distill) -> str:
    epochs = plural(step.epochs, "epoch")
    if step.group_lasso > 0:
        return f"channels shrunk {epochs} (group lasso {significant(step.group_lasso)})"
    return f"distilled {epochs}"


def runtime_text(settings: Runtime) -> str:
    """Say how a session runs: ``1 thread on any core, no spinning, arena, graph level all``."""
    cores = settings.affinity
    where = f"core{'' if len(cores) == 1 else 's'} {listed([str(core) for core in cores])}" if cores else "any core"
    spinning, arena = ("" if on else "no " for on in (settings.allow_spinning, settings.memory_arena))
    return (
        f"{plural(settings.threads, 'thread')} on {where}, {spinning}spinning, {arena}arena, "
        f"graph level {settings.graph_level}"
    )


TELL_NODES = ("local:", "ssh:")
"""Devices that tell which nodes a session runs; a native runner and a browser have no profile of them."""


def nodes(providers: Mapping[str, int], uri: str, shares: Mapping[str, float] | None = None) -> str:
    """Say who runs how many nodes: ``CPUExecutionProvider 31``, or why there is nothing to say.

    Args:
        providers: Provider to number of nodes.
        uri: Of the device that counted them.
        shares: Of the time, by provider, 0..1.
    """
    if not providers:
        return "none left after optimization" if uri.startswith(TELL_NODES) else "this device does not tell"
    times = {} if shares is None else {name: f" ({share:.1%} of the time)" for name, share in shares.items()}
    return ", ".join(f"{name} {count}{times.get(name, '')}" for name, count in providers.items())


NOISE = {
    "load": "other load held it up (wall time {} above CPU time)",
    "drift": "the runs of one process changed speed by {} (clock frequency, or heat)",
    "two speeds": "the runs come in two speeds, {} apart",
    "unlike processes": "one process is {} slower than another",
    "few runs": "the cap in time left {} of the runs that bound the percentile",
    "heat": "it began at {}, after a wait that ended before the processor was cool",
}
"""Kinds of ``edgeopt.statistics.noise``; the blank is a share in percent, of heat the temperature."""


def noise_text(kind: str, amount: float) -> str:
    """Say what disturbed a measurement."""
    return NOISE[kind].format(f"{amount:.0f}{NBSP}°C" if kind == "heat" else f"{100 * abs(amount):.0f}{NBSP}%")

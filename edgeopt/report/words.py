"""Numbers, recipes and settings in, text out; the numbers of a result are rounded here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from edgeopt.records.profile import Runtime
from edgeopt.records.recipe import (
    Compact,
    Distill,
    DropUnseenRows,
    Float16,
    FlushDenormals,
    FuseQLinear,
    GraphStep,
    LowerResolution,
    LowRank,
    PackWeights,
    Prune,
    Quantize,
    QuantizeAware,
    QuantizeDynamic,
    QuantizeWeights,
    Recipe,
    Simplify,
    Sparsify,
    StoreWeights,
    Student,
    TorchStep,
)

_Silent = Simplify | FlushDenormals | FuseQLinear | PackWeights | Compact
"""Steps that change no number."""
Unit = Literal["ms", "bytes", "per_s", "score"]

MISSING = "—"
NBSP = "\u00a0"
"""A space at which no line is broken."""
_MAX_DIGITS = 9
"""Enough to distinguish any found number from its limit."""


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
    """Write a number with its unit, or a dash if there is no number."""
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
    """Write a number with enough digits to see that it is not the limit: 1.0004 ms if the limit is 1 ms."""
    digits = next(
        (
            digits
            for digits in range(3, _MAX_DIGITS)
            if quantity(found, unit, digits) != quantity(allowed, unit, digits)
        ),
        3,
    )
    return quantity(found, unit, digits)


def limit(value: float, unit: Unit) -> str:
    """Write a limit as it was set, without trailing zeros: ``1 ms``, ``0.5 MB``, ``0.01``."""
    number, _, suffix = quantity(value, unit, _MAX_DIGITS).partition(" ")
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return f"{number} {suffix}".rstrip()


def times(ratio: float) -> str:
    """Write a ratio: ``12.3×``."""
    return f"{significant(ratio)}×"


def tick(value: float) -> str:
    """Write a value on an axis, as short as possible."""
    return f"{value:,.6g}"


def percent(ratio: float) -> str:
    """Write a share of 0..1: ``23 %``, or ``0.4 %`` if it is small."""
    return f"{100 * ratio:.1f}{NBSP}%" if 0 < abs(ratio) < 0.0995 else f"{100 * ratio:.0f}{NBSP}%"


def duration(seconds: float) -> str:
    """Write a duration: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``1 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    minutes, rest = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def listed(items: Sequence[str]) -> str:
    """Join items: ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def plural(count: int, noun: str) -> str:
    """Write ``1 trial``, ``3 trials``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def recipe_text(
    recipe: Recipe,
    parameters: int | None,
    baseline_parameters: int | None,
    *,
    weight_types: Sequence[str] = (),
    exporter: str | None = None,
) -> str:
    """Put a recipe into words: ``pruned to 23 % of the parameters (taylor), distilled for 8 epochs, int8``.

    Args:
        recipe: The recipe.
        parameters: Number of parameters of its network; None if unknown.
        baseline_parameters: Number of parameters of the baseline; None if unknown.
        weight_types: Of the weights in the file; empty if unknown.
        exporter: Of the file; ``given`` if the user gave it as ``.onnx``.
    """
    ratio = parameters / baseline_parameters if parameters is not None and baseline_parameters else None
    parts = (
        steps_text(recipe.torch_steps, ratio) or ("as given" if exporter == "given" else "as trained"),
        steps_text(recipe.graph_steps, ratio),
        _stored_precision(weight_types) if recipe.precision == "fp32" else "",
    )
    return ", ".join(filter(None, parts))


def _stored_precision(weight_types: Sequence[str]) -> str:
    """Put the types of a file's weights into words: ``float16``, ``mixed int8 and float32``."""
    return listed(weight_types or ("float32",)) if len(weight_types) < 2 else f"mixed {listed(weight_types)}"


def steps_text(steps: Iterable[TorchStep | GraphStep], parameters_ratio: float | None) -> str:
    """Put steps into words, except those that change no number; empty if there are no others.

    Args:
        steps: The steps, in order.
        parameters_ratio: Parameters of the result over the baseline's; None if unknown.
    """
    found, is_quantized = [], False
    for step in steps:
        text = _step_text(step, parameters_ratio)
        if text and is_quantized and isinstance(step, StoreWeights):
            text = f"other {text}"  # those of what stays in float
        found += [text] if text else []
        is_quantized = is_quantized or isinstance(step, Quantize | QuantizeDynamic | QuantizeWeights)
    return ", ".join(found)


def _step_text(step: TorchStep | GraphStep, parameters_ratio: float | None) -> str | None:
    match step:
        case Student(name=name):
            return f"student “{name}”"
        case Prune(importance=importance, widths=widths):
            groups = sum(width > 0 for width in widths.values())
            channels = f"{plural(sum(widths.values()), 'channel')} in {plural(groups, 'group')}"
            left = channels if parameters_ratio is None else f"{percent(parameters_ratio)} of the parameters"
            depth = "" if groups == len(widths) else ", whole branches left out"
            fitted = ", fitted" if step.fitted_samples else ""
            return f"pruned to {left}{depth} ({importance.method}{fitted})"
        case Sparsify(ratio=ratio, method=method):
            return f"{percent(ratio)} of the weights set to zero ({method})"
        case LowRank(layers=layers):
            return f"{plural(len(layers), 'layer')} factorized (low rank)"
        case LowerResolution(height=height, width=width):
            return f"the image shrunk to {height}x{width}"
        case QuantizeAware(weight_bits=bits):
            return f"trained for int8 with {bits}-bit weights" if bits else "trained for int8"
        case Distill():
            return _distill_text(step)
        case Quantize():
            return _quantize_text(step)
        case QuantizeDynamic():
            range_text = _bit_range(step.bits_of) or (f"{step.weight_bits} bits" if step.weight_bits < 8 else "")
            return f"dynamic int8 (weights in {range_text}, rounded by samples)" if range_text else "dynamic int8"
        case QuantizeWeights(bits=bits, samples=samples):
            rounded = ", rounded by samples" if samples else ""
            return f"{bits}-bit weights in matrix products{rounded}, float32 activations"
        case _:
            return _short_text(step)


def _short_text(step: DropUnseenRows | StoreWeights | Float16 | _Silent) -> str | None:
    match step:
        case DropUnseenRows(tables=tables):
            return f"rows of unseen ids dropped from {plural(len(tables), 'table')}"
        case StoreWeights(weight_bits=bits, samples=samples, bits_of=bits_of):
            stored = _bit_range(bits_of) or ("int8" if bits == 8 else f"{bits} bits")
            return f"weights stored in {stored}{', rounded by samples' if samples else ''}"
        case Float16():
            return "float16"
        case Simplify() | FlushDenormals() | FuseQLinear() | PackWeights() | Compact():
            return None


def _bit_range(bits_of: Sequence[tuple[str, int]]) -> str:
    """Put weights with bits of their own into words: ``3 to 8 bits``; empty if there are none."""
    found = sorted({bits for _, bits in bits_of})
    if len(found) < 2:
        return "".join(f"{bits} bits" for bits in found)
    return f"{found[0]} to {found[-1]} bits"


def _quantize_text(step: Quantize) -> str:
    bits = min(step.weight_bits or 8, 7 if step.reduce_range else 8)
    details = [f"{bits}-bit weights"] if bits < 8 else []
    details = [f"weights in {_bit_range(step.bits_of)}"] if step.bits_of else details
    details += ["rounded by samples"] if step.weight_bits and step.calibration != "trained" else []
    details += ["equalized"] if step.equalize else []
    details += ["bias-corrected"] if step.correct_bias else []
    details += [f"{plural(len(step.float_nodes), 'node')} in float"] if step.float_nodes else []
    return f"int8 ({', '.join(details)})" if details else "int8"


def _distill_text(step: Distill) -> str:
    epochs = plural(step.epochs, "epoch")
    if step.group_lasso > 0:
        return f"channels shrunk for {epochs} (group lasso {significant(step.group_lasso)})"
    if step.ended_after is not None:
        return f"distilled until the time was over, after {plural(step.ended_after, 'epoch')}"
    return f"distilled for {'at least ' if step.min_steps else ''}{epochs}"


def runtime_text(settings: Runtime) -> str:
    """Put a session's settings into words: ``1 thread on any core, no spinning, arena, graph level all``."""
    cores = settings.affinity
    where = f"core{'' if len(cores) == 1 else 's'} {listed([str(core) for core in cores])}" if cores else "any core"
    spinning, arena = ("" if on else "no " for on in (settings.allow_spinning, settings.memory_arena))
    return (
        f"{plural(settings.threads, 'thread')} on {where}, {spinning}spinning, {arena}arena, "
        f"graph level {settings.graph_level}"
    )


_PROFILING_DEVICES = ("local:", "ssh:")
"""Devices with a profile of a session's nodes; a native runner and a browser have none."""


def nodes(providers: Mapping[str, int], uri: str, shares: Mapping[str, float] | None = None) -> str:
    """Write the number of nodes that each provider runs: ``CPUExecutionProvider 31``, or why it is unknown.

    Args:
        providers: Provider to number of nodes.
        uri: Of the device that counted them.
        shares: Provider to its share of the time, 0..1.
    """
    if not providers:
        older = "none left after optimization, or not reported (onnxruntime before 1.24)"
        return older if uri.startswith(_PROFILING_DEVICES) else "not reported by this device"
    times = {} if shares is None else {name: f" ({share:.1%} of the time)" for name, share in shares.items()}
    return ", ".join(f"{name} {count}{times.get(name, '')}" for name, count in providers.items())


_NOISE = {
    "load": "other load slowed it down (wall time {} above CPU time)",
    "drift": "the runs of one process changed speed by {} (clock frequency or heat)",
    "two speeds": "the runs come in two speeds, {} apart",
    "unlike processes": "one process is {} slower than another",
    "few runs": "time ran out after {} of the runs that the percentile needs",
    "heat": "it began at {}: the wait for the processor to cool down timed out",
}
"""For each kind of ``edgeopt.statistics.find_noise``; the blank is a share in percent, or a temperature for heat."""


def noise_text(kind: str, amount: float) -> str:
    """Say how a measurement was disturbed, and by how much."""
    return _NOISE[kind].format(f"{amount:.0f}{NBSP}°C" if kind == "heat" else f"{100 * abs(amount):.0f}{NBSP}%")

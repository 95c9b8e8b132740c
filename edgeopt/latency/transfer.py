"""From a calibration and a file's nodes on the host to the file's latency on a target that is not there.

Model: a run on the device takes the time of an empty call, and for each class of operator the host's time in it times
the class's ratio. A ratio is the median over the micro-models that spend most of their time in the class, so that a
disturbed one cannot bend it. How far this is off is measured on whole networks that no ratio has seen; their errors
make the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from edgeopt.bench.measure import CONTENDED_RATIO
from edgeopt.bench.nodes import FileTime, NodeTime
from edgeopt.records.calibration import Calibration, Probe
from edgeopt.records.codec import digest
from edgeopt.records.measurement import Estimate, Foretold
from edgeopt.statistics import student_quantile

NETWORK_PRECISION = Literal["fp32", "fp16"]
"""What a file's weights are stored in; int8 is told by the operators."""

MATMULS = ("MatMul", "Gemm", "Attention", "Einsum")
OPERATOR_CLASSES = {
    "activation": "Sigmoid Tanh Erf Gelu FastGelu BiasGelu QuickGelu HardSwish HardSigmoid Exp Log Softplus Mish Elu "
    "Selu Silu Swish Pow Sqrt Reciprocal",
    "elementwise": "Add Sub Mul Div Relu Clip LeakyRelu PRelu Min Max Abs Neg Where Sum BiasAdd",
    "pooling": "MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean ReduceMax ReduceSum ReduceMin",
    "normalization": "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization InstanceNormalization "
    "GroupNormalization GroupNorm BatchNormalization LpNormalization RMSNormalization",
    "softmax": "Softmax LogSoftmax BiasSoftmax",
    "movement": "Transpose Concat Slice Split Pad Gather Expand Tile Resize Upsample Cast DepthToSpace SpaceToDepth "
    "ReorderInput ReorderOutput Flatten Reshape Squeeze Unsqueeze Identity Shape "
    "Constant ConstantOfShape",
    "quantize": "QuantizeLinear DequantizeLinear DynamicQuantizeLinear",
    "recurrent": "LSTM GRU RNN DynamicQuantizeLSTM",
}
"""Classes whose kernels are told by the operator's name alone."""

FIT_ROUNDS = 20
"""Of fitting each class in turn; the ratios settle within a few."""

MIN_CLASS_TIME_RATIO = 0.5
"""Of a micro-model's time that has to be in a class for it to speak for the class."""

MIN_WHOLE_NETWORKS = 3
"""Held-out networks of a usable calibration."""

MAX_UNSEEN_RATIO = 0.2
"""Share of the time in unknown classes above which nothing is foretold."""


def operator_class(node: NodeTime, precision: NETWORK_PRECISION = "fp32") -> str:
    """Return the class of kernels that a node belongs to, such as ``pointwise``, ``matmul int8`` or ``conv fp16``.

    Args:
        node: Of a profile, after ONNX Runtime's optimizations.
        precision: Of the file's floats.
    """
    operator = node.operator
    quantized = (
        operator.startswith(("QLinear", "QGemm", "QAttention", "DynamicQuantizeMatMul")) or "Integer" in operator
    )
    plain = operator.removeprefix("QLinear")
    kind = next((kind for kind, operators in OPERATOR_CLASSES.items() if plain in operators.split()), None)
    if kind is None and "Conv" in operator:
        kind = _convolution(node.inputs)
    elif kind is None and any(word in operator for word in MATMULS):
        kind = "matmul"
    suffix = " int8" if quantized else "" if precision == "fp32" or kind == "quantize" else f" {precision}"
    return f"{kind or 'other'}{suffix}"


def _convolution(inputs: Sequence[Sequence[int]]) -> str:
    """Tell a convolution by its weights: output channels, input channels of a group, and the kernel's sizes."""
    weights = next((shape for shape in inputs[1:] if len(shape) == len(inputs[0]) > 2), None)
    if weights is None:
        return "conv"
    if weights[1] == 1 and weights[0] > 1 and inputs[0][1] > 1:
        return "depthwise"
    return "pointwise" if max(weights[2:]) == 1 else "conv"


def class_times(timed: FileTime, precision: NETWORK_PRECISION, empty_ns: float = 0.0) -> dict[str, float]:
    """Return each class's nanoseconds in a run on the host, the time of an empty call left out.

    The profiler tells the nodes' shares, the run without it how long they take together.
    """
    total = sum(node.ns for node in timed.nodes)
    whole = max(timed.ns - empty_ns, 0.0)
    found: dict[str, float] = {}
    for node in timed.nodes:
        name = operator_class(node, precision)
        found[name] = found.get(name, 0.0) + (node.ns / total * whole if total else 0.0)
    return found


MAD_TO_DEVIATION = 1.4826
"""From the median of absolute deviations to a standard deviation, of a normal distribution."""


class Fit(NamedTuple):
    """What a calibration says of its device."""

    empty_ns: float
    """Of a call that computes nothing."""
    ratios: dict[str, float]
    """Class to the device's time over the host's."""
    errors: dict[str, tuple[float, ...]]
    """Class to the logarithms of observed over fitted time of its micro-models, each left out of its ratio."""
    average: float
    """Over all classes, for those that no micro-model is of."""


def median_ns(calibration: Calibration, probe: Probe) -> float:
    """Return a probe's time on the device: the median over its processes of their medians."""
    processes = probe.device_cpu_ns if calibration.clock == "cpu" else probe.device_wall_ns
    return float(np.median([np.median(process) for process in processes]))


def contended_processes(calibration: Calibration) -> int:
    """Return how many processes on the device lost it to other load; 0 where CPU time does not tell."""
    if calibration.clock == "wall":
        return 0
    return sum(
        sum(wall) > CONTENDED_RATIO * sum(cpu)
        for probe in calibration.probes
        for wall, cpu in zip(probe.device_wall_ns, probe.device_cpu_ns, strict=True)
    )


def fit_ratios(calibration: Calibration) -> Fit:
    """Fit the ratio of each class, one after the other and again, with those of the others held."""
    micros = [probe for probe in calibration.probes if probe.role == "micro"]
    empty = next(median_ns(calibration, probe) for probe in calibration.probes if probe.role == "empty")
    work = [max(median_ns(calibration, probe) - empty, 1.0) for probe in micros]
    average = float(np.median([ns / sum(probe.host_ns.values()) for ns, probe in zip(work, micros, strict=True)]))
    speakers: dict[str, list[int]] = {}
    for index, probe in enumerate(micros):
        name, ns = max(probe.host_ns.items(), key=lambda item: item[1])
        if ns >= MIN_CLASS_TIME_RATIO * sum(probe.host_ns.values()):
            speakers.setdefault(name, []).append(index)
    ratios = dict.fromkeys(speakers, average)
    single: dict[str, list[float]] = {}
    for _ in range(FIT_ROUNDS):
        for name, members in speakers.items():
            single[name] = [
                _single_ratio(micros[index].host_ns, work[index], name, ratios, average) for index in members
            ]
            ratios[name] = float(np.median(single[name]))
    errors = {name: _left_out_errors(values) for name, values in single.items()}
    return Fit(empty, ratios, errors, average)


def _single_ratio(
    host: Mapping[str, float], work_ns: float, name: str, ratios: Mapping[str, float], average: float
) -> float:
    """Return what one micro-model says of its class; at least a tenth of its time stays with the class."""
    others = sum(ratios.get(other, average) * ns for other, ns in host.items() if other != name)
    return max(work_ns - others, 0.1 * work_ns) / host[name]


def _left_out_errors(values: Sequence[float]) -> tuple[float, ...]:
    if len(values) < 2:
        return ()
    return tuple(
        math.log(value / float(np.median([*values[:index], *values[index + 1 :]])))
        for index, value in enumerate(values)
    )


def predicted_ns(found: Fit, host_ns: Mapping[str, float]) -> float:
    """Return a run's time on the device by the ratios alone."""
    return found.empty_ns + sum(found.ratios.get(name, found.average) * ns for name, ns in host_ns.items())


def whole_errors(calibration: Calibration, found: Fit) -> dict[str, float]:
    """Return the logarithm of observed over foretold time of each held-out network."""
    wholes = [probe for probe in calibration.probes if probe.role == "whole"]
    return {
        probe.name: math.log(median_ns(calibration, probe) / predicted_ns(found, probe.host_ns)) for probe in wholes
    }


def held_out_errors(errors: Mapping[str, float]) -> dict[str, float]:
    """Return by how much each network is off when the others alone correct the ratios: 0.1 is a tenth too much."""
    logs = list(errors.values())
    others = [np.mean([*logs[:index], *logs[index + 1 :]]) for index in range(len(logs))]
    return {name: math.exp(float(other) - log) - 1 for (name, log), other in zip(errors.items(), others, strict=True)}


def unseen_ratio(found: Fit, host_ns: Mapping[str, float]) -> float:
    """Return the share of the host's time in classes that the calibration lacks."""
    total = sum(host_ns.values()) or 1.0
    return sum(ns for name, ns in host_ns.items() if name not in found.ratios) / total


def estimate(calibration: Calibration, host_ns: Mapping[str, float], percentiles: Sequence[int]) -> Estimate:
    """Foretell a file's latency on the calibration's device.

    The point is the ratios' sum, corrected by the mean error of the held-out networks. The interval of 95 % is that of
    one more such network: Student's t with as many networks, on the logarithm; a percentile adds the spread of the
    probes' own percentiles over their medians.

    Args:
        calibration: With ``MIN_WHOLE_NETWORKS`` held-out networks at least.
        host_ns: ``class_times`` of the file on the calibration's host.
        percentiles: Which ones, 1 to 99.
    """
    found = fit_ratios(calibration)
    errors = whole_errors(calibration, found)
    logs, count = np.array(list(errors.values())), len(errors)
    spread, factor = float(np.std(logs, ddof=1)), math.sqrt(1 + 1 / count)
    center = predicted_ns(found, host_ns) * math.exp(float(np.mean(logs)))
    foretold = []
    for percentile in percentiles:
        tail = _tail(calibration, percentile)
        wide = student_quantile(0.975, count - 1) * math.hypot(factor * spread, tail.spread)
        point = center * math.exp(tail.center)
        low, high = point * math.exp(-wide), point * math.exp(wide)
        foretold.append(Foretold(percentile=percentile, value_ns=point, low_ns=low, high_ns=high))
    return Estimate(
        calibration=digest(calibration),
        made_at=calibration.made_at,
        device=calibration.device,
        device_runtime=calibration.device_environment.onnxruntime,
        percentiles=tuple(foretold),
        networks=count,
        error_ratio=float(np.median(np.abs(list(held_out_errors(errors).values())))),
        unseen_ratio=unseen_ratio(found, host_ns),
    )


class _Tail(NamedTuple):
    center: float
    spread: float


def _tail(calibration: Calibration, percentile: int) -> _Tail:
    """Return center and spread, over the networks, of the logarithm of a percentile of wall time over its median.

    Both are medians, as a network that met other load says nothing of the device.
    """
    probes = [
        [np.array(runs) for runs in probe.device_wall_ns] for probe in calibration.probes if probe.role != "empty"
    ]
    logs = np.array(
        [np.median([math.log(np.percentile(runs, percentile) / np.median(runs)) for runs in probe]) for probe in probes]
    )
    center = float(np.median(logs))
    return _Tail(center, MAD_TO_DEVIATION * float(np.median(np.abs(logs - center))))

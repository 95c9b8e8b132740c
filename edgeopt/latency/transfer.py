"""A file's latency on a target that is not connected: a calibration and a profile on the host in, an interval out.

Model: a run on the device takes the time of an empty call plus, for each class of operator, the host's time in the
class times the class's ratio. A ratio is the median over the micro-models that spend most of their time in the class,
so that one disturbed model has no effect. The error is measured on whole networks that were not used for the ratios;
these errors give the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from edgeopt.bench.measure import CONTENDED_RATIO
from edgeopt.bench.nodes import FileTime, NodeTime
from edgeopt.records.calibration import Calibration, Probe
from edgeopt.records.codec import digest
from edgeopt.records.measurement import Estimate, PercentileEstimate

NetworkPrecision = Literal["fp32", "fp16"]
"""The type of a file's float weights; int8 shows in the operators."""

MATMUL_NAMES = ("MatMul", "Gemm", "Attention", "Einsum")
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
"""Classes of kernels that the operator's name determines."""

FIT_ROUNDS = 20
"""Rounds of fitting each class in turn; the ratios converge within a few."""

MIN_CLASS_TIME_RATIO = 0.5
"""Part of a micro-model's time that must be in a class for the model to represent the class."""

MIN_WHOLE_NETWORKS = 3
"""Fewest held-out networks of a usable calibration."""

MAX_UNSEEN_RATIO = 0.2
"""With a larger part of the time in unknown classes, no latency is estimated."""


def operator_class(node: NodeTime, precision: NetworkPrecision = "fp32") -> str:
    """Return the class of kernels that a node belongs to, such as ``pointwise``, ``matmul int8`` or ``conv fp16``.

    Args:
        node: A profiled node, after ONNX Runtime's optimizations.
        precision: The type of the file's float weights.
    """
    operator = node.operator
    quantized = (
        operator.startswith(("QLinear", "QGemm", "QAttention", "DynamicQuantizeMatMul")) or "Integer" in operator
    )
    float_operator = operator.removeprefix("QLinear")
    kind = next((kind for kind, operators in OPERATOR_CLASSES.items() if float_operator in operators.split()), None)
    if kind is None and "Conv" in operator:
        kind = _convolution_class(node.inputs)
    elif kind is None and any(name in operator for name in MATMUL_NAMES):
        kind = "matmul"
    suffix = " int8" if quantized else "" if precision == "fp32" or kind == "quantize" else f" {precision}"
    return f"{kind or 'other'}{suffix}"


def _convolution_class(inputs: Sequence[Sequence[int]]) -> str:
    """Classify a convolution by its weights' shape: output channels, input channels of a group, kernel sizes."""
    weights = next((shape for shape in inputs[1:] if len(shape) == len(inputs[0]) > 2), None)
    if weights is None:
        return "conv"
    if weights[1] == 1 and weights[0] > 1 and inputs[0][1] > 1:
        return "depthwise"
    return "pointwise" if max(weights[2:]) == 1 else "conv"


def class_times(timed: FileTime, precision: NetworkPrecision, empty_ns: float = 0.0) -> dict[str, float]:
    """Return each class's nanoseconds in a run on the host, without the time of an empty call.

    The profile gives the nodes' shares, the run without the profiler their total.
    """
    profiled_ns = sum(node.ns for node in timed.nodes)
    run_ns = max(timed.ns - empty_ns, 0.0)
    times: dict[str, float] = {}
    for node in timed.nodes:
        name = operator_class(node, precision)
        times[name] = times.get(name, 0.0) + (node.ns / profiled_ns * run_ns if profiled_ns else 0.0)
    return times


MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""


class RatioFit(NamedTuple):
    """A device's speed relative to the host, fitted to a calibration."""

    empty_ns: float
    """Time of a call that computes nothing."""
    ratios: dict[str, float]
    """Class to the device's time over the host's."""
    errors: dict[str, tuple[float, ...]]
    """Class to the logarithms of observed over fitted time of its micro-models, each left out of its own ratio."""
    average: float
    """Ratio over all classes, for classes without a micro-model."""


def median_ns(calibration: Calibration, probe: Probe) -> float:
    """Return a probe's time on the device: the median over its processes of their medians."""
    processes = probe.device_cpu_ns if calibration.clock == "cpu" else probe.device_wall_ns
    return float(np.median([np.median(process) for process in processes]))


def contended_processes(calibration: Calibration) -> int:
    """Return how many processes on the device were disturbed by other load; 0 if the clock is wall time."""
    if calibration.clock == "wall":
        return 0
    return sum(
        sum(wall) > CONTENDED_RATIO * sum(cpu)
        for probe in calibration.probes
        for wall, cpu in zip(probe.device_wall_ns, probe.device_cpu_ns, strict=True)
    )


def fit_ratios(calibration: Calibration) -> RatioFit:
    """Fit the ratio of each class in turn, over several rounds, with the other ratios fixed."""
    micros = [probe for probe in calibration.probes if probe.role == "micro"]
    empty = next(median_ns(calibration, probe) for probe in calibration.probes if probe.role == "empty")
    work_ns = [max(median_ns(calibration, probe) - empty, 1.0) for probe in micros]
    average = float(np.median([ns / sum(probe.host_ns.values()) for ns, probe in zip(work_ns, micros, strict=True)]))
    representatives: dict[str, list[int]] = {}
    for index, probe in enumerate(micros):
        name, ns = max(probe.host_ns.items(), key=lambda item: item[1])
        if ns >= MIN_CLASS_TIME_RATIO * sum(probe.host_ns.values()):
            representatives.setdefault(name, []).append(index)
    ratios = dict.fromkeys(representatives, average)
    model_ratios: dict[str, list[float]] = {}
    for _ in range(FIT_ROUNDS):
        for name, members in representatives.items():
            model_ratios[name] = [
                _model_ratio(micros[index].host_ns, work_ns[index], name, ratios, average) for index in members
            ]
            ratios[name] = float(np.median(model_ratios[name]))
    errors = {name: _leave_one_out_log_errors(values) for name, values in model_ratios.items()}
    return RatioFit(empty, ratios, errors, average)


def _model_ratio(
    host_ns: Mapping[str, float], work_ns: float, name: str, ratios: Mapping[str, float], average: float
) -> float:
    """Return a class's ratio by one micro-model, with at least a tenth of the model's time left for the class."""
    others = sum(ratios.get(other, average) * ns for other, ns in host_ns.items() if other != name)
    return max(work_ns - others, 0.1 * work_ns) / host_ns[name]


def _leave_one_out_log_errors(values: Sequence[float]) -> tuple[float, ...]:
    if len(values) < 2:
        return ()
    return tuple(
        math.log(value / float(np.median([*values[:index], *values[index + 1 :]])))
        for index, value in enumerate(values)
    )


def predict_ns(fit: RatioFit, host_ns: Mapping[str, float]) -> float:
    """Return a run's time on the device according to the ratios, uncorrected."""
    return fit.empty_ns + sum(fit.ratios.get(name, fit.average) * ns for name, ns in host_ns.items())


def network_log_errors(calibration: Calibration, fit: RatioFit) -> dict[str, float]:
    """Return the logarithm of observed over predicted time of each held-out network."""
    networks = [probe for probe in calibration.probes if probe.role == "whole"]
    return {probe.name: math.log(median_ns(calibration, probe) / predict_ns(fit, probe.host_ns)) for probe in networks}


def held_out_errors(log_errors: Mapping[str, float]) -> dict[str, float]:
    """Return each network's error if only the other networks correct its prediction: 0.1 is 10 % too much."""
    logs = list(log_errors.values())
    others = [np.mean([*logs[:index], *logs[index + 1 :]]) for index in range(len(logs))]
    return {
        name: math.exp(float(other) - log) - 1 for (name, log), other in zip(log_errors.items(), others, strict=True)
    }


def unseen_ratio(fit: RatioFit, host_ns: Mapping[str, float]) -> float:
    """Return the part of the host's time, in 0..1, that is in classes without a ratio."""
    total = sum(host_ns.values()) or 1.0
    return sum(ns for name, ns in host_ns.items() if name not in fit.ratios) / total


def estimate(calibration: Calibration, host_ns: Mapping[str, float], percentiles: Sequence[int]) -> Estimate:
    """Predict a file's latency on the calibration's device.

    The value is the prediction of the ratios, corrected by the mean error of the held-out networks. The 95 % interval
    is the prediction interval for one more such network, by Student's t on the logarithm; a percentile adds the spread
    of the probes' percentiles over their medians.

    Args:
        calibration: Has at least ``MIN_WHOLE_NETWORKS`` held-out networks.
        host_ns: ``class_times`` of the file on the calibration's host.
        percentiles: Percentiles to predict, 1 to 99.
    """
    fit = fit_ratios(calibration)
    errors = network_log_errors(calibration, fit)
    logs, count = np.array(list(errors.values())), len(errors)
    spread, factor = float(np.std(logs, ddof=1)), math.sqrt(1 + 1 / count)
    center = predict_ns(fit, host_ns) * math.exp(float(np.mean(logs)))
    estimates = []
    for percentile in percentiles:
        tail = _tail(calibration, percentile)
        half_width = float(stdtrit(count - 1, 0.975)) * math.hypot(factor * spread, tail.spread)
        point = center * math.exp(tail.center)
        low, high = point * math.exp(-half_width), point * math.exp(half_width)
        estimates.append(PercentileEstimate(percentile=percentile, value_ns=point, low_ns=low, high_ns=high))
    return Estimate(
        calibration=digest(calibration),
        made_at=calibration.made_at,
        device=calibration.device,
        device_runtime=calibration.device_environment.onnxruntime,
        percentiles=tuple(estimates),
        networks=count,
        error_ratio=float(np.median(np.abs(list(held_out_errors(errors).values())))),
        unseen_ratio=unseen_ratio(fit, host_ns),
    )


class _Tail(NamedTuple):
    center: float
    spread: float


def _tail(calibration: Calibration, percentile: int) -> _Tail:
    """Return the center and spread, over all probes, of the logarithm of a percentile of wall time over the median.

    Both are medians, because a probe that was disturbed by other load says nothing about the device.
    """
    probes = [
        [np.array(runs) for runs in probe.device_wall_ns] for probe in calibration.probes if probe.role != "empty"
    ]
    logs = np.array(
        [np.median([math.log(np.percentile(runs, percentile) / np.median(runs)) for runs in probe]) for probe in probes]
    )
    center = float(np.median(logs))
    return _Tail(center, MAD_TO_DEVIATION * float(np.median(np.abs(logs - center))))

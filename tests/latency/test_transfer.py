"""Calibrations of synthetic devices: their speed in each class is known, and so is the right answer."""

import math

import msgspec
import numpy as np
import pytest
from builders import a_device, an_environment
from tiny_models import a_quick_profile

from edgeopt.bench.nodes import FileTime, NodeTime
from edgeopt.latency.transfer import (
    class_times,
    contended_processes,
    estimate,
    fit_ratios,
    held_out_errors,
    network_log_errors,
    operator_class,
    predict_ns,
    unseen_ratio,
)
from edgeopt.records.calibration import Calibration, Probe

EMPTY_NS = 20_000.0
SPEEDS = {"conv": 3.0, "matmul": 1.5, "movement": 5.0, "conv int8": 0.7}
"""The synthetic device's time over the host's, by class."""
RUNS = 40


def a_probe(name, role, host_ns, *, rng, noise=0.0, slower=1.0, jitter=0.0, contended=False):
    true = EMPTY_NS + sum(SPEEDS[kind] * ns for kind, ns in host_ns.items())
    center = true * slower * math.exp(rng.normal(0, noise))
    cpu = tuple(tuple((center * np.exp(rng.normal(0, jitter, RUNS))).astype(int).tolist()) for _ in range(3))
    wall = tuple(tuple(3 * run for run in process) for process in cpu) if contended else cpu
    return Probe(name=name, role=role, host_ns=host_ns, device_wall_ns=wall, device_cpu_ns=cpu)


def a_calibration(*, noise=0.0, jitter=0.0, seed=0, bias=1.0, disturbed=(), contended=False):
    """Three micro-models for each class, mixed with other classes, and five networks; ``bias`` slows only networks."""
    rng = np.random.default_rng(seed)
    options = {"rng": rng, "noise": noise, "jitter": jitter, "contended": contended}
    probes = [Probe(name="empty", role="empty", host_ns={"elementwise": 15_000.0},
                    device_wall_ns=((int(EMPTY_NS),) * RUNS,), device_cpu_ns=((int(EMPTY_NS),) * RUNS,))]  # fmt: skip
    for kind in SPEEDS:
        for size in (1e5, 5e5, 2e6):
            others = {"movement": 0.1 * size} if kind != "movement" else {}
            name = f"{kind} {size:g}"
            probes.append(
                a_probe(name, "micro", {kind: size, **others}, slower=9.0 if name in disturbed else 1.0, **options)
            )
    for index in range(5):
        shares = dict(zip(SPEEDS, (rng.dirichlet(np.ones(len(SPEEDS))) * 3e6).tolist(), strict=True))
        probes.append(a_probe(f"net {index}", "whole", shares, slower=bias, **options))
    return Calibration(
        schema="edgeopt/calibration-1",
        target="phone",
        runtime=a_quick_profile().runtime,
        made_at="2026-11-24T16:00:00+00:00",
        host=a_device(kind="stand-in"),
        host_environment=an_environment(),
        device=msgspec.structs.replace(a_device(), uri="ssh://pi", id="aarch64-pi"),
        device_environment=an_environment(),
        clock="cpu",
        probes=tuple(probes),
        sustained=None,
    )


def true_ns(host_ns):
    return EMPTY_NS + sum(SPEEDS[kind] * ns for kind, ns in host_ns.items())


def test_the_ratios_of_a_noiseless_device_are_found_although_every_micro_model_mixes_classes():
    found = fit_ratios(a_calibration())
    assert found.ratios == pytest.approx(SPEEDS, rel=1e-3)
    assert found.empty_ns == EMPTY_NS
    host = {"conv": 2e6, "matmul": 1e6, "movement": 3e5}
    assert predict_ns(found, host) == pytest.approx(true_ns(host), rel=1e-3)


def test_one_disturbed_micro_model_does_not_change_the_ratio_of_its_class():
    found = fit_ratios(a_calibration(disturbed=("conv 500000",)))
    assert found.ratios["conv"] == pytest.approx(SPEEDS["conv"], rel=0.01)
    assert max(found.errors["conv"]) > math.log(5)


def test_the_interval_contains_the_true_latency_as_often_as_it_claims():
    host = {"conv": 2e6, "matmul": 1e6, "movement": 3e5, "conv int8": 1e6}
    contained = 0
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        median = estimate(a_calibration(noise=0.1, seed=seed), host, (50,)).at(50)
        contained += median.low_ns <= true_ns(host) * math.exp(rng.normal(0, 0.1)) <= median.high_ns
    assert 0.9 <= contained / 200 <= 0.995


def test_an_effect_that_slows_all_whole_networks_corrects_the_estimate_and_is_not_an_error():
    calibration, host = a_calibration(bias=1.3), {"conv": 2e6}
    assert estimate(calibration, host, (50,)).at(50).value_ns == pytest.approx(1.3 * true_ns(host), rel=0.01)
    errors = held_out_errors(network_log_errors(calibration, fit_ratios(calibration)))
    assert max(map(abs, errors.values())) < 0.01


def test_a_high_percentile_follows_the_device_s_own_tail():
    calibration = a_calibration(jitter=0.1)
    found = estimate(calibration, {"conv": 2e6}, (50, 90))
    assert found.at(90).value_ns / found.at(50).value_ns == pytest.approx(math.exp(0.1 * 1.28), rel=0.05)
    with pytest.raises(ValueError, match="99 was not predicted; known: 50, 90"):
        found.at(99)


def test_other_load_on_the_device_does_not_change_the_ratios_and_is_counted():
    calibration = a_calibration(contended=True)
    assert fit_ratios(calibration).ratios == pytest.approx(SPEEDS, rel=1e-3)
    assert contended_processes(calibration) == 3 * (len(calibration.probes) - 1)
    assert contended_processes(a_calibration()) == 0


def test_an_operator_without_a_micro_model_counts_as_the_average_and_is_reported():
    found = fit_ratios(a_calibration())
    host = {"conv": 3e6, "recurrent": 1e6}
    assert unseen_ratio(found, host) == 0.25
    assert predict_ns(found, host) == pytest.approx(EMPTY_NS + SPEEDS["conv"] * 3e6 + found.average * 1e6)


@pytest.mark.parametrize(
    ("operator", "shapes", "precision", "kind"),
    [
        ("Conv", [[1, 8, 9, 9], [16, 8, 3, 3]], "fp32", "conv"),
        ("FusedConv", [[1, 8, 9, 9], [16, 8, 1, 1], [16]], "fp32", "pointwise"),
        ("Conv", [[1, 8, 9, 9], [8, 1, 3, 3]], "fp16", "depthwise fp16"),
        ("Conv", [[1, 1, 9, 9], [8, 1, 3, 3]], "fp32", "conv"),
        ("Conv", [[1, 8, 9], [16, 8, 1]], "fp32", "pointwise"),
        ("QLinearConv", [[1, 8, 9, 9], [], [], [8, 1, 3, 3]], "fp32", "depthwise int8"),
        ("ConvInteger", [[1, 8, 9, 9]], "fp32", "conv int8"),
        ("FusedGemm", [[1, 8]], "fp32", "matmul"),
        ("DynamicQuantizeMatMul", [[1, 8]], "fp32", "matmul int8"),
        ("QLinearAdd", [], "fp16", "elementwise int8"),
        ("QuantizeLinear", [], "fp16", "quantize"),
        ("ReorderOutput", [], "fp32", "movement"),
        ("SomethingOfTheirs", [], "fp32", "other"),
    ],
)
def test_every_node_has_a_class(operator, shapes, precision, kind):
    assert operator_class(NodeTime("n", operator, shapes, [], 1.0), precision) == kind


def test_the_time_of_an_empty_call_is_in_no_class_and_the_rest_is_divided_among_the_nodes():
    nodes = [NodeTime("a", "Relu", [], [], 10.0), NodeTime("b", "MatMul", [], [], 30.0)]
    assert class_times(FileTime(0, 120_000.0, nodes), "fp32", 20_000.0) == {"elementwise": 25_000.0, "matmul": 75_000.0}
    assert class_times(FileTime(0, 10.0, nodes), "fp32", 20.0) == {"elementwise": 0.0, "matmul": 0.0}

"""Execution providers by the names that people use, and how far outputs are apart."""

import numpy as np
import pytest

from edgeopt.bench.nodes import NodeTime, count_operators
from edgeopt.bench.providers import find_providers, relative_difference
from edgeopt.errors import InputError

HERE = ("OpenVINOExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ((), ["CPUExecutionProvider", "OpenVINOExecutionProvider"]),
        (("openvino",), ["CPUExecutionProvider", "OpenVINOExecutionProvider"]),
        (("OpenVINOExecutionProvider", "cpu"), ["CPUExecutionProvider", "OpenVINOExecutionProvider"]),
        (("CPU",), ["CPUExecutionProvider"]),
    ],
)
def test_the_processor_comes_first_and_no_provider_that_sends_inputs_away(wanted, found):
    assert find_providers(wanted, HERE, "local:") == found


@pytest.mark.parametrize(
    ("wanted", "available", "advice"),
    [
        (("cuda", "cpu"), HERE, "--providers cuda: .* Install onnxruntime-gpu"),
        (("qnn",), HERE, "--providers qnn: .* Install onnxruntime-qnn, best"),
        (("tpu",), HERE, "--providers tpu: .* Install a package of onnxruntime that has it"),
        ((), (), "--providers all: .* Install a package of onnxruntime that has it"),
    ],
)
def test_a_provider_that_is_not_there_is_refused_with_what_to_install(wanted, available, advice):
    with pytest.raises(InputError, match=advice):
        find_providers(wanted, available, "local:")


def test_outputs_are_apart_by_the_largest_of_their_values():
    expected = [np.array([1.0, -4.0, np.inf]), np.array([[2, 3]]), np.array(["cat"])]
    found = [np.array([1.0, -3.8, np.inf]), np.array([[2, 3]]), np.array(["cat"])]
    assert relative_difference(expected, found) == pytest.approx(0.05)
    assert relative_difference(expected[1:], found[1:]) == 0.0
    assert relative_difference([np.array([1.0])], [np.array([np.nan])]) == np.inf
    assert relative_difference([], []) is None


def test_operators_are_counted_by_provider():
    nodes = [
        NodeTime("a", operator, [], [], 1.0, provider)
        for operator, provider in (("Conv", "NPU"), ("Conv", "CPU"), ("Resize", "CPU"), ("Resize", "CPU"))
    ]
    assert count_operators(nodes) == {"NPU": {"Conv": 1}, "CPU": {"Resize": 2, "Conv": 1}}

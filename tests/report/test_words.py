"""Numbers and recipes in words."""

from typing import get_args

import msgspec
import pytest
from builders import a_recipe

from edgeopt.records.recipe import Float16, QuantizeDynamic, Recipe, Simplify, Sparsify, StoreWeights, Student
from edgeopt.report import words
from edgeopt.statistics import NoiseKind


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.20134, "0.201"), (9.999, "10.0"), (1234.5, "1,234"), (0.0004567, "0.000457"), (-2.5, "-2.50")],
)
def test_three_digits_and_no_exponent(value, text):
    assert words.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(900, "900 B"), (84_123, "84.1 kB"), (2_830_000, "2.83 MB"), (1_200_000_000, "1.20 GB")]
)
def test_bytes_are_decimal(value, text):
    assert words.size(value) == text


def test_scores_have_four_decimals_up_to_ten_and_two_above():
    assert words.score(0.91555) == "0.9155"
    assert words.score(-0.002) == "−0.0020"
    assert words.score(37.251) == "37.25"


def test_a_number_next_to_its_limit_gets_the_digits_that_distinguish_them():
    assert words.distinguishable(1.0004, 1.0, "ms") == "1.0004 ms"
    assert words.distinguishable(2_000_001, 2_000_000, "bytes") == "2.000001 MB"
    assert words.distinguishable(0.5, 1.0, "ms") == "0.500 ms"
    assert words.distinguishable(1.0, 1.0, "ms") == "1.00 ms"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.0, "ms", "1 ms"),
        (500_000, "bytes", "500 kB"),
        (0.01, "score", "0.01"),
        (1000, "per_s", "1,000 / s"),
        (0, "score", "0"),
    ],
)
def test_limits_are_written_as_they_were_set(value, unit, text):
    assert words.limit(value, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (9.97, "10 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


def test_shares():
    assert words.percent(0.234) == "23\u00a0%"
    assert words.percent(0.0041) == "0.4\u00a0%"


def test_lists():
    assert [words.listed(list("abc")[:count]) for count in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_recipes():
    assert words.recipe_text(a_recipe(), 2000, 2000) == "as trained, float32"
    assert words.recipe_text(a_recipe(int8=True), 2000, 2000) == "as trained, int8 (7-bit weights)"
    assert words.recipe_text(a_recipe(pruned=True), 200, 2000) == (
        "pruned to 10\u00a0% of the parameters (taylor), distilled for 8 epochs, float32"
    )
    other = Recipe(
        torch_steps=(Student(name="tiny"), Sparsify(method="magnitude", ratio=0.8, scope="global", schedule="once")),
        graph_steps=(Float16(),),
        seed=0,
        parent=None,
    )
    assert (
        words.recipe_text(other, None, 2000)
        == "student “tiny”, 80\u00a0% of the weights set to zero (magnitude), float16"
    )


def test_a_given_file_is_named_by_the_types_of_its_weights():
    def text(*weight_types, int8=False):
        return words.recipe_text(a_recipe(int8=int8), 9, 9, weight_types=weight_types, exporter="given")

    assert text("float16") == "as given, float16"
    assert text("bfloat16", "float32") == "as given, mixed bfloat16 and float32"
    assert text("int8") == "as given, int8"
    assert text() == "as given, float32"
    assert text("int8", "float32", int8=True) == "as given, int8 (7-bit weights)"
    assert words.recipe_text(a_recipe(), 9, 9, weight_types=("float16",), exporter="dynamo") == "as trained, float16"


def test_a_pruned_network_whose_parameters_are_unknown_is_described_by_its_channels():
    pruned = a_recipe(pruned=True)
    assert words.steps_text(pruned.torch_steps[:1], None) == "pruned to 16 channels in 1 group (taylor)"
    fitted = msgspec.structs.replace(pruned.torch_steps[0], fitted_samples=2048)
    assert words.steps_text([fitted], None) == "pruned to 16 channels in 1 group (taylor, fitted)"
    shallow = msgspec.structs.replace(pruned.torch_steps[0], widths={"stem": 16, "inner": 0})
    assert words.steps_text([shallow], None) == "pruned to 16 channels in 1 group, whole branches left out (taylor)"
    assert "10\u00a0% of the parameters, whole branches left out" in words.steps_text([shallow], 0.1)
    assert words.recipe_text(pruned, None, 2000).startswith("pruned to 16 channels in 1 group (taylor), distilled")
    assert words.recipe_text(pruned, 200, None).startswith("pruned to 16 channels in 1 group (taylor), distilled")


@pytest.mark.parametrize("kind", get_args(NoiseKind))
def test_every_kind_of_noise_has_its_words_and_its_size(kind):
    amount, text = (71.4, f"71{words.NBSP}°C") if kind == "heat" else (-0.13, f"13{words.NBSP}%")
    assert text in words.noise_text(kind, amount)


@pytest.mark.parametrize(
    ("providers", "uri", "text"),
    [
        ({"CPUExecutionProvider": 31}, "local:", "CPUExecutionProvider 31"),
        ({"CUDAExecutionProvider": 9, "CPUExecutionProvider": 1}, "ssh://pi", "CUDAExecutionProvider 9, CPUExec"),
        ({}, "local:?python=/usr/bin/python3", "none left after optimization"),
        ({}, "adb:SERIAL1?runner=r&library=l", "not reported by this device"),
        ({}, "browser:?runtime=folder", "not reported by this device"),
    ],
)
def test_the_nodes_of_each_provider_are_reported_if_the_device_reports_them(providers, uri, text):
    assert words.nodes(providers, uri).startswith(text)


def test_weights_that_are_stored_after_a_quantization_are_the_other_ones():
    few = QuantizeDynamic(reduce_range=False, weight_bits=4, samples=256)
    stored = StoreWeights(weight_bits=4, samples=256)
    assert words.steps_text((stored,), None) == "weights stored in 4 bits, rounded by samples"
    assert words.steps_text((Simplify(), few, stored), None) == (
        "dynamic int8 (weights in 4 bits, rounded by samples), other weights stored in 4 bits, rounded by samples"
    )

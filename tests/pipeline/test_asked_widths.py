"""What a user asks of widths: from the task, ``edgeopt.toml`` and the command line to the notes of the report."""

from types import SimpleNamespace

import numpy as np
import pytest
from builders import a_budget, a_trial
from onnx import TensorProto, helper, numpy_helper
from tiny_task import TinyNet, batches

import edgeopt
from edgeopt.errors import ConfigError, TaskError
from edgeopt.onnx_module.convert import to_module
from edgeopt.pipeline.search.width_rules import settle_width_rules, width_notes
from edgeopt.planning.width_rules import NO_EFFECT_NOTE
from edgeopt.planning.widths import UNREACHED_NOTE
from edgeopt.records.width_rules import WidthRules
from edgeopt.task import CheckedTask


def a_task(**options):
    data = batches(64, 0)
    return CheckedTask(edgeopt.classification(TinyNet(8), data, data, name="tiny", **options), "my_task.py:task")


def test_the_rules_of_the_task_and_the_command_line_are_joined():
    task = a_task(keep=["head"], min_widths={"stem.*": 4})
    found = settle_width_rules(WidthRules(keep=("body.1.*",), min_widths={"stem.*": 6}), task)
    assert found == WidthRules(keep=("head", "body.1.*"), min_widths={"stem.*": 6})
    assert settle_width_rules(WidthRules(), a_task()) == WidthRules()


def test_a_glob_without_a_match_names_where_it_comes_from():
    with pytest.raises(ConfigError, match=r"my_task\.py:task: 'heed' matches no .* nearest names are head"):
        settle_width_rules(WidthRules(), a_task(keep=("heed",)))
    with pytest.raises(ConfigError, match=r"--keep, --min-width or edgeopt\.toml: 'heed\.\*' matches no"):
        settle_width_rules(WidthRules(min_widths={"heed.*": 8}), a_task())


@pytest.mark.parametrize("options", [{"keep": "head"}, {"keep": [1]}, {"min_widths": {"stem": "8"}}])
def test_rules_of_another_form_are_refused(options):
    with pytest.raises(TaskError, match=r"my_task\.py:task: keep has to be a list of globs such as"):
        a_task(**options)


def a_given_file(path, samples):
    """Two products and an LSTM, with names as exporters write them."""
    random = np.random.RandomState(0)
    shapes = {"dense/kernel:0": (8, 16), "/W": (1, 64, 16), "/R": (1, 64, 16), "onnx::MatMul_7": (16, 4), "axis": None}
    stored = [
        numpy_helper.from_array(np.array([0]) if shape is None else random.rand(*shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "dense/kernel:0"], ["h"], name="/dense/MatMul"),
        helper.make_node("LSTM", ["h", "/W", "/R"], ["", "last"], name="/lstm/LSTM", hidden_size=16),
        helper.make_node("Squeeze", ["last", "axis"], ["s"], name="/Squeeze"),
        helper.make_node("MatMul", ["s", "onnx::MatMul_7"], ["y"], name="/head/MatMul"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("x", [3, "n", 8]), ("y", ["n", 4]))]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return SimpleNamespace(path=path, given=SimpleNamespace(model=model), training=samples or None)


@pytest.fixture
def given(monkeypatch):
    monkeypatch.setattr("edgeopt.pipeline.search.width_rules.OnnxTask", SimpleNamespace)
    return a_given_file("net.onnx", samples=900)


@pytest.mark.parametrize(
    ("glob", "kept"),
    [
        ("dense/*", ("dense_kernel_0",)),
        ("/dense/MatMul", ("dense_kernel_0",)),
        ("/head/*", ("onnx__MatMul_7",)),
        ("/W", ("_lstm_LSTM.weight_ih", "_lstm_LSTM.weight_hh", "_lstm_LSTM.bias_ih", "_lstm_LSTM.bias_hh")),
    ],
)
def test_globs_for_a_given_file_are_about_its_weights_and_nodes(given, glob, kept):
    found = settle_width_rules(WidthRules(keep=(glob,), min_widths={glob: 3}), given)
    assert set(found.keep) == set(kept)
    assert found.min_widths == dict.fromkeys(found.keep, 3)
    parameters = {name for name, _ in to_module(given.given.model).named_parameters()}
    assert {name for name in found.keep if name.endswith(("0", "7", "weight_ih"))} <= parameters


def test_a_glob_that_matches_no_weight_of_a_given_file_is_refused_with_the_nearest_names(given):
    with pytest.raises(ConfigError, match=r"'/haed/MatMul' matches no weight of net\.onnx, nor a node .* /head/MatMul"):
        settle_width_rules(WidthRules(keep=("/haed/MatMul",)), given)
    with pytest.raises(ConfigError, match="'/Squeeze' matches no weight"):
        settle_width_rules(WidthRules(keep=("/Squeeze",)), given)
    given.training = None
    assert settle_width_rules(WidthRules(keep=("/haed/MatMul",)), given) == WidthRules()


def test_the_report_names_what_was_kept_and_limits_that_widths_could_not_reach():
    unreached = f"{UNREACHED_NOTE} the latency limit: it is far"
    trials = [a_trial(number, notes=(unreached, f"'a.*' {NO_EFFECT_NOTE}")) for number in (1, 2)]
    strict, loose = a_budget(max_latency_ms=1e-3), a_budget(max_latency_ms=1e3)
    assert width_notes(WidthRules(keep=("a.*", "b"), min_widths={"c": 4}), trials, strict) == (
        "No channel was cut from a.*, b.",
        "The least number of output channels was 4 in c.",
        f"'a.*' {NO_EFFECT_NOTE}.",
        f"Trials 1 and 2: {unreached}.",
    )
    assert width_notes(WidthRules(), trials[:1], loose) == (f"'a.*' {NO_EFFECT_NOTE}.",)

"""What a user asks of widths: from the task, ``edgeopt.toml`` and the command line to the notes of the report."""

import pytest
from builders import a_budget, a_trial
from tiny_task import TinyNet, batches

import edgeopt
from edgeopt.errors import ConfigError, InputError, TaskError
from edgeopt.pipeline.search.width_rules import settle_width_rules, width_notes
from edgeopt.planning.width_rules import NO_EFFECT_NOTE
from edgeopt.planning.widths import UNREACHED_NOTE
from edgeopt.records.width_rules import WidthRules
from edgeopt.task import CheckedTask
from edgeopt.tasks.onnx_file import OnnxTask


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


def test_an_onnx_file_is_not_pruned_so_nothing_can_be_kept():
    given = OnnxTask.__new__(OnnxTask)
    assert settle_width_rules(WidthRules(), given) == WidthRules()
    with pytest.raises(InputError, match=r"'head' is about channels, but those of an \.onnx file cannot be kept"):
        settle_width_rules(WidthRules(keep=("head",)), given)


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

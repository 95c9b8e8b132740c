"""The page: complete, escaped, offline; its charts stay inside their frame."""

import re
import xml.etree.ElementTree as ET

import msgspec
import pytest
from builders import (
    a_baseline,
    a_budget,
    a_choice,
    a_failed_trial,
    a_mixed_trial,
    a_profile,
    a_slower_int8_trial,
    a_test_result,
    a_trial,
    an_estimate,
)

from edgeopt.records.sparsity import SparsityCurve, SparsityPoint
from edgeopt.report.document import build_document
from edgeopt.report.page import SECTIONS, TEMPLATES, render_page


def page_of(choice=None):
    return render_page(build_document(choice or a_choice()))


def test_it_loads_nothing_from_anywhere():
    page = page_of()
    assert not re.search(r"https?://|//[a-z]", page)
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\(", page)
    assert re.findall(r'href="([^#][^"]*)"', page) == ["choice.json"]
    assert "default-src 'none'" in page


def test_every_trial_is_there_once_with_its_recipe_or_its_reason():
    page = page_of()
    assert sorted(re.findall(r'id="trial-(\d+)"', page)) == ["0", "1", "2", "3", "4"]
    assert "distilled for 8 epochs, int8" in page
    assert "the loss is not finite" in page


def test_names_that_the_user_chose_are_escaped():
    hostile = "<script>alert(1)</script>"
    trials = (a_baseline(), a_trial(1, notes=(hostile,)), a_failed_trial(2, stage=hostile, reason=hostile))
    choice = msgspec.structs.replace(a_choice(trials, task=hostile, target=hostile), seconds={hostile: 1.0})
    page = page_of(choice)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_every_section_has_its_template_and_is_shown_if_it_has_something_to_say():
    trials = (a_baseline(), a_trial(1, notes=("TorchScript exporter used",)), a_failed_trial(2))
    trials = (*trials, a_slower_int8_trial(3), a_mixed_trial(4))
    full = page_of(msgspec.structs.replace(a_choice(trials), test=a_test_result(drop_ci95=None)))
    for section in SECTIONS:
        assert (TEMPLATES / f"{section.key}.html").is_file()
        assert f'<section id="{section.key}">' in full
    empty = page_of(msgspec.structs.replace(a_choice((a_failed_trial(0),)), seconds={}))
    for key in ("test", "charts", "parity", "notes", "time"):
        assert f'<section id="{key}">' not in empty


def test_slower_layers_and_sensitive_layers_have_their_tables():
    text = re.sub(r"<[^>]+>|\s+", " ", page_of(a_choice((a_baseline(), a_slower_int8_trial(1), a_mixed_trial(2)))))
    assert re.search(r"Conv → QLinearConv\s+\(2\)\s+1×96×28×28\s+0\.108 ms\s+0\.132 ms\s+0\.0240 ms", text)
    assert re.search(r"1\s+stem\s+8\.2 dB\s+1\.0.%\s+float", text)
    assert re.search(r"3\s+body\s+31\.5 dB\s+94.%\s+int8", text)


def test_the_proof_has_the_value_the_interval_the_limit_and_the_verdict_for_each_limit():
    page = page_of(a_choice((a_baseline(), a_trial(1, latency_ms=1.5)), a_budget(max_peak_memory_bytes=None)))
    proof = page[page.index('id="proof"') : page.index('id="charts"')]
    text = re.sub(r"<[^>]+>|\s+", " ", proof)
    assert re.search(r"Latency, p90\s+0\.8\d+ ms\s+0\.8\d+ to 0\.8\d+ ms\s+≤.1 ms\s+kept", text)
    assert re.search(r"Peak memory\s+8\.00 MB\s+—\s+waived\s+waived", text)


def test_without_a_winner_the_nearest_trial_and_advice_are_shown():
    page = page_of(a_choice((a_baseline(), a_trial(1)), a_budget(max_size_bytes=800)))
    assert "No trial keeps every limit." in page
    assert "Trial 1, the nearest trial, compared with each limit." in page
    assert "A size limit of" in page
    assert "would be enough for trial 1." in page


def test_a_stand_in_is_reported_at_the_top():
    caution = "Not measured on the target itself: this machine stood in for it."
    assert caution in page_of(a_choice(proven_on_target=False))
    assert caution not in page_of()


def test_equal_notes_are_reported_once():
    trials = (a_baseline(), *(a_trial(number, notes=("TorchScript exporter used",)) for number in (1, 2, 3)))
    page = page_of(a_choice(trials))
    assert page.count("TorchScript exporter used") == 1
    assert "(trial 1, 2 and 3)" in page


def charts_of(page):
    return [ET.fromstring(svg) for svg in re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)]


@pytest.mark.parametrize(
    "choice",
    [
        a_choice(),
        a_choice((a_baseline(),)),
        a_choice((a_baseline(), a_trial(1, score=0.1)), a_budget(min_score=0.9)),
        a_choice((a_trial(0), a_trial(1))),
        a_choice(budget=a_budget(max_latency_ms=None, max_size_bytes=None, max_score_drop=None)),
        a_choice((a_baseline(score=0.0), a_trial(1, score=0.0, drop=0.0))),
    ],
)
def test_the_charts_are_well_formed_and_draw_every_measured_trial_inside_the_frame(choice):
    charts = charts_of(page_of(choice))
    assert len(charts) == 2
    for chart in charts:
        width, height = (float(number) for number in chart.get("viewBox").split()[2:])
        marks = [group.get("transform") for group in chart.findall("./a/g")]
        assert len(marks) == len(choice.verdicts)
        for mark in marks:
            x, y = (float(number) for number in re.findall(r"[\d.]+", mark))
            assert 0 < x < width
            assert 0 < y < height
        assert all(group.find("title").text for group in chart.findall("./a/g"))


def test_a_score_far_below_the_limit_does_not_squeeze_the_others():
    page = page_of(a_choice((a_baseline(), a_trial(1), a_trial(2, size_bytes=400, score=0.1))))
    score_chart = charts_of(page)[0]
    heights = {
        group.find("title").text.split(":")[0]: float(re.findall(r"[\d.]+", group.get("transform"))[1])
        for group in score_chart.findall("./a/g")
    }
    assert heights["Trial 1"] - heights["Trial 0"] > 20  # units of the SVG, 360 high


def test_limits_are_lines_with_their_value():
    page = page_of(a_choice(budget=a_budget(max_size_bytes=5000)))
    assert "at most 5 kB" in page
    assert "at least 0.905" in page
    assert "at most 1<" in page


def test_zeros_against_loss_are_a_chart_with_a_curve_for_each_method():
    points = tuple(SparsityPoint(nonzero_ratio=1 - zeros, loss=0.3 + zeros) for zeros in (0.0, 0.5, 0.9))
    curve = SparsityCurve(points={"magnitude": points, "taylor": points}, samples=512)
    page = render_page(build_document(msgspec.structs.replace(a_choice(), sparsity=curve)))
    assert "Zeros against loss, before training" in page
    assert page.count('class="dot"') == 6
    assert "taylor: 1.20 at 10\u00a0%" in page
    assert "Zeros against loss" not in render_page(build_document(a_choice()))


def an_estimated_choice():
    """A baseline and a winner whose latencies were predicted, with a median error of 10 %."""

    def estimated(trial):
        measurement = msgspec.structs.replace(
            trial.outcome.measurement, estimate=an_estimate(), runtime=a_profile().runtime
        )
        return msgspec.structs.replace(trial, outcome=msgspec.structs.replace(trial.outcome, measurement=measurement))

    return a_choice((estimated(a_baseline()), estimated(a_trial(1))), proven_on_target=False)


def test_the_page_says_that_latencies_are_estimated_and_how_accurate_that_was():
    page = page_of(an_estimated_choice())
    assert (
        "Not measured on the target itself: its latency is estimated, with a median error of 10\u00a0% in calibration."
    ) in page
    for text in (
        "Latency, p90, estimated</th>",  # the proof
        ">Latency p90, estimated</th>",  # all trials
        'data-label="latency p90, estimated"',
        "Latency p90, estimated, ms",  # the chart
        "0.200 ms estimated, score",  # its tooltip
        "Latencies are estimated, not measured",
        "1 thread on any core, no spinning, arena, graph level all",
    ):
        assert text in page, text


def test_timings_of_this_machine_are_labelled_if_the_target_is_estimated():
    page = page_of(an_estimated_choice())
    assert "10.0× smaller and on this machine 4.03× faster" in page
    assert "A/B on this machine, 95 %" in page
    assert "on this machine, which the estimate is based on." in page
    assert "Interleaved A/B against the baseline, on this machine: " in page
    measured = page_of()
    assert "on this machine" not in measured
    assert "estimated" not in measured


def test_a_device_without_a_profile_of_nodes_is_reported_as_such():
    choice = a_choice()
    trials = tuple(
        msgspec.structs.replace(
            trial,
            outcome=msgspec.structs.replace(
                trial.outcome, measurement=msgspec.structs.replace(trial.outcome.measurement, providers={})
            ),
        )
        for trial in choice.trials[:3]
    )
    phone = msgspec.structs.replace(choice.device, uri="adb:SERIAL1?runner=r&library=l")
    page = page_of(
        msgspec.structs.replace(choice, trials=trials, verdicts=choice.verdicts[:3], pareto_front=(), device=phone)
    )
    assert "Nodes run by</th><td>not reported by this device<" in page
    assert "Nodes run by</th><td>CPUExecutionProvider 31<" in page_of()

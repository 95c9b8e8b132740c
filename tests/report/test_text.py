"""The result on a terminal, read as plain text of 80 columns."""

import io
import re
from pathlib import Path

import msgspec
import pytest
from builders import (
    a_baseline,
    a_budget,
    a_choice,
    a_derived_trial,
    a_device,
    a_failed_trial,
    a_mixed_trial,
    a_recipe,
    a_slower_int8_trial,
    a_test_result,
    a_trial,
    a_trial_with_a_float_prefix,
    an_estimate,
)
from rich.console import Console
from tiny_bundles import AN_ORT_FILE

from edgeopt.records.low_rank import Factorization
from edgeopt.records.recipe import LowRank, Sparsify
from edgeopt.report import sentences
from edgeopt.report.document import build_document
from edgeopt.report.page import render_page
from edgeopt.report.text import print_result


def shown(choice=None, out=None):
    """The text, with its lines joined and each run of spaces made one."""
    file = io.StringIO()
    print_result(build_document(choice or a_choice()), Console(width=80, file=file), out=out)
    text = file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines() if out is None)
    return " ".join(text.split())


def of(*trials, proven_on_target=True, **limits):
    return shown(a_choice(trials, a_budget(**limits), proven_on_target=proven_on_target))


def test_the_file_in_the_runtimes_own_format_is_named_with_its_size_and_where_it_is():
    ort = msgspec.structs.replace(AN_ORT_FILE, weights="stored", target_platform="arm", onnxruntime="1.32.0")
    choice = msgspec.structs.replace(a_choice(), ort=ort)
    text = shown(choice, Path("out"))
    assert (
        "For a reduced ONNX Runtime: model.ort (20.0 kB, deflated 15.0 kB; with weights unpacked in each run, for Arm "
        "processors, with onnxruntime 1.32.0 or newer) and required_operators.config. `edgeopt guide app`"
    ) in text
    assert "out/model.onnx out/model.ort" in text
    assert "model.ort (20.0 kB" in render_page(build_document(choice))
    assert "model.ort" not in shown()


def test_a_size_with_the_runtime_says_so_wherever_it_is_shown():
    trials = (a_baseline(size_bytes=900_000), a_trial(1, size_bytes=300_000), a_trial(2, size_bytes=200_000, score=0.1))
    choice = a_choice(trials, a_budget(max_size_bytes=2_000_000, runtime_size_bytes=1_500_000))
    text = shown(choice)
    assert "Trial 1 keeps every limit at 300 kB (1.80 MB with the runtime). It is 3.00× smaller" in text
    assert "File size, with the runtime's" in text
    assert "≤ 2 MB" in text.replace("\u00a0", " ")
    assert "File size 900 kB 300 kB" in text
    page = render_page(build_document(choice))
    assert "File size, with the runtime&#39;s 1.50 MB" in page
    tight = a_choice(trials, a_budget(max_size_bytes=1_750_000, runtime_size_bytes=1_500_000))
    missed = tight.verdicts[1].misses[0]
    said = sentences.miss_text(missed, tight.budget).replace("\u00a0", " ")
    assert said == "size 1.80 MB, with the runtime's 1.50 MB (≤ 1.75 MB)"


def test_the_gains_of_sparse_and_low_rank_trials_are_reported_in_measured_numbers():
    low = LowRank(layers={"fc.weight": Factorization(rank=8, form="pointwise")})
    zeros = Sparsify(method="magnitude", ratio=0.5, scope="global", schedule="cubic")
    trials = (
        a_baseline(),
        a_trial(1, size_bytes=1000, download_bytes=900),
        a_derived_trial(2, zeros, size_bytes=1000, download_bytes=600),
        a_derived_trial(3, low, time_ratio=0.5, size_bytes=500, download_bytes=400),
    )
    choice = msgspec.structs.replace(a_choice(trials), notes=("Low rank was not tried: nothing large.",))
    said = sentences.variant_gains(build_document(choice))
    assert said[0].startswith(
        "Trial 2 is trial 1 with 50\u00a0% of the weights set to zero (magnitude): the download is 1.50× smaller"
    )
    assert "and it runs not measurably faster or slower" in said[0]
    assert said[1].startswith("Trial 3 is trial 1 with 1 layer factorized (low rank): the file is 2.00× smaller")
    assert "and it runs 2.0" in said[1] or "and it runs 1.9" in said[1]
    assert "faster (95" in said[1]
    assert said[2] == "Low rank was not tried: nothing large."


def test_the_gain_of_a_float_prefix_is_reported_in_bytes_and_time():
    full_int8 = a_trial(1, size_bytes=900, recipe=a_recipe(int8=True), drop=0.0)
    trials = (a_baseline(), full_int8, a_trial_with_a_float_prefix(2, time_ratio=0.8, size_bytes=905))
    (said,) = sentences.float_prefix_notes(build_document(a_choice(trials)))
    assert said.startswith(
        "Trial 2 is trial 1 with its first layers in float, because int8 saved no time there: the file is 5 B"
    )
    assert "larger, and it runs 1.2" in said
    assert "Trial 2 is trial 1 with its first layers in float" in of(*trials)


def test_a_float_prefix_that_is_not_faster_does_not_claim_that_int8_saved_no_time():
    full_int8 = a_trial(1, size_bytes=900, recipe=a_recipe(int8=True), drop=0.0)
    trials = (a_baseline(), full_int8, a_trial_with_a_float_prefix(2, time_ratio=1.2, size_bytes=905))
    (said,) = sentences.float_prefix_notes(build_document(a_choice(trials)))
    assert said.startswith("Trial 2 is trial 1 with its first layers in float: the file is 5 B")
    assert "slower (95" in said


def test_full_int8_that_a_float_prefix_replaced_says_so_in_the_table_of_trials():
    full_int8 = a_trial(1, size_bytes=900, recipe=a_recipe(int8=True), drop=0.0)
    pages = [
        render_page(
            build_document(a_choice((a_baseline(), full_int8, a_trial_with_a_float_prefix(2, time_ratio=ratio))))
        )
        for ratio in (0.8, 1.0)
    ]
    said = "keeps every limit, but trial 2 is faster by more than it is larger"
    assert [said in page for page in pages] == [True, False]


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (None, "The trained networks were taught by the original network of fashion."),
        ("nets/large.onnx", "The trained networks were taught by nets/large.onnx."),
    ],
)
def test_the_teacher_is_named_if_something_was_trained(teacher, said):
    choice = msgspec.structs.replace(a_choice(), teacher=teacher)
    assert said in shown(choice)
    assert said in render_page(build_document(choice))
    assert build_document(choice).teacher == teacher
    assert "taught by" not in of(a_baseline(), a_trial(1, recipe=a_recipe(int8=True)))


def test_a_winner_is_named_with_its_gains_and_every_limit():
    text = shown()
    assert "Trial 2 keeps every limit at 900 B. It is 10.0× smaller and 4." in text
    assert "baseline winner, #2 limit" in text
    assert "Peak memory 8.00 MB 4.00 MB ≤ 10 MB kept" in text
    assert "File size 9.00 kB 900 B ≤ 2 MB kept" in text
    assert "Score drop 0.0000 0.0050 ≤ 0.01 kept" in text
    assert "Latency, p90 0.8" in text
    assert "Download (deflated) 8.10 kB 810 B" in text
    assert "Trial 2: pruned to 10 % of the parameters (taylor), distilled for 8 epochs, int8" in text


def test_the_binding_limit_is_named_with_the_trial_it_stopped():
    assert (
        "Binding limit: score. Trial 3 would be smaller (400 B), but misses score drop of up to 0.0350 (≤ 0.01)."
        in shown()
    )


def test_if_nothing_smaller_was_tried_the_limit_with_the_least_room_is_named():
    text = of(a_baseline(), a_trial(1, drop=0.0), max_size_bytes=1000)
    assert "Binding limit: size, which has the least room (90 % of 1 kB)" in text


def test_a_latency_shows_the_end_of_its_interval_that_decides():
    assert "(≤ 0.2" in of(a_baseline(), a_trial(1, latency_ms=0.2, spread=0.1))


def test_waived_limits_are_named():
    text = of(a_baseline(), a_trial(1, memory_bytes=None), max_peak_memory_bytes=None, max_latency_ms=None)
    assert "Waived: latency and peak memory." in text
    assert "Peak memory 8.00 MB — waived" in text


@pytest.mark.parametrize(("allowed", "advice"), [(0.001, "To show less than 0.001, give 2,995 samples."), (0.01, None)])
def test_unchanged_samples_are_no_proof_that_nothing_changes(allowed, advice):
    trial = a_trial(1, drop=0.0, drop_ci95=(0.0, 0.0))  # on 2,000 samples
    text = of(a_baseline(), trial, max_score_drop=allowed).replace("\xa0", " ")
    said = "Each of the 2,000 samples scores as with the baseline, which shows at 95 % that fewer than 0.15 % of other"
    assert said in text
    assert ("To show less" in text) == (advice is not None)
    assert (advice or said) in text
    assert "not distinguishable from zero" not in text


def test_differences_within_the_noise_are_reported():
    nearly = a_trial(2, size_bytes=500, drop=0.008, drop_ci95=(0.004, 0.012))
    text = of(a_baseline(), a_trial(1, drop=0.001, drop_ci95=(-0.002, 0.004), contended=True), nearly)
    assert "The score drop, −0.0020 to 0.0040 (95 %), is not distinguishable from zero." in text
    assert "Trial 2 is smaller and misses score drop of up to 0.0120 (≤ 0.01, within the noise)." in text
    assert "Other load disturbed the timing of trial 1" in text


def test_a_timing_that_drifted_is_reported_with_its_trial():
    assert "Timing of trial 1: the runs of one process changed speed by 16 %" in of(
        a_baseline(), a_trial(1, spread=0.1)
    )


def test_a_smaller_trial_that_is_slower_than_the_baseline_is_explained():
    text = of(a_baseline(), a_trial(1, time_ratio=1.4))
    assert "The baseline itself is the smallest file that keeps every limit: 9.00 kB." in text
    assert "Trial 1 is smaller and within the limits, but was left out: it is slower than the baseline" in text
    assert re.search(r"If bytes count more than time, the same command with --size-mb \d\.\d{6} picks trial 1 \(", text)


def test_an_int8_file_slower_than_its_float_counterpart_is_explained_by_its_layers():
    text = of(a_baseline(), a_trial(2, size_bytes=2000, drop=0.0), a_slower_int8_trial(1))
    assert "Trial 1 in int8 is 1." in text
    assert "slower (95 %" in text
    assert "than the same network in float32" in text
    assert "Layers that became slower: Conv → QLinearConv 1×96×28×28 (2 of them, 0.108 → 0.132 ms)." in text
    assert "slower than the baseline" not in text


def test_the_float_nodes_of_a_mixed_precision_trial_are_named_with_their_noise():
    text = of(a_baseline(), a_mixed_trial())
    assert "Trial 1 keeps 2 of 3 nodes in float" in text
    assert "stem (8.2 dB, 1.0 %) and head (14.0 dB, 5.0 %)" in text.replace("\u00a0", " ")


@pytest.mark.parametrize(("time_ratio", "said"), [(1.3, "× slower (95 %"), (1.001, "not measurably faster or slower")])
def test_a_winner_that_is_not_faster_is_not_called_faster(time_ratio, said):
    winner = a_trial(1, time_ratio=time_ratio, recipe=a_recipe(int8=True))
    assert said in of(a_baseline(), winner, proven_on_target=False)


def test_a_stand_in_proves_nothing_on_the_target():
    assert "only stands in for the phone: nothing is proven on the target" in of(a_baseline(), proven_on_target=False)
    assert "Measured on the target itself, Test Processor 3000, 1 thread (local:)." in of(a_baseline())


def test_scores_on_the_test_set_and_the_time_are_reported():
    text = shown(msgspec.structs.replace(a_choice(), test=a_test_result()))
    assert "On 10,000 test samples, used once at the end: baseline 0.9140, winner 0.9090 (drop 0.0050, 95 %" in text
    assert "Where the time went (1 min 10 s): measure 40 s, train 24 s, export 6.0 s." in text


def test_without_a_winner_the_nearest_trial_and_sufficient_limits_are_named():
    text = of(a_baseline(), a_trial(1), max_size_bytes=800)
    assert text.startswith("No trial keeps every limit.")
    assert "nearest, #1" in text
    assert "File size 9.00 kB 900 B ≤ 800 B missed" in text
    assert "Trial 1 is the nearest and misses size. A size limit of" in text
    assert "would be enough for trial 1." in text


def test_the_files_are_named_and_the_model_only_if_there_is_one():
    out = Path("somewhere/out")
    assert "somewhere/out/model.onnx somewhere/out/report.html somewhere/out/choice.json" in shown(out=out)
    assert "model.onnx" not in shown(a_choice(budget=a_budget(max_size_bytes=10)), out=out)


def test_a_failed_baseline_leaves_dashes():
    text = shown(a_choice((a_failed_trial(0), a_failed_trial(1))))
    assert "No trial keeps every limit." in text
    assert "File size — ≤ 2 MB missed" in text


def test_names_that_look_like_markup_are_printed_as_they_are():
    assert "[bold]x[/bold] on phone" in shown(a_choice(task="[bold]x[/bold]"))


def an_estimated_choice(latency_ms):
    """A baseline and a trial for a target that was not there to measure; the host's times keep every limit."""
    trials = []
    for trial in (a_baseline(), a_trial(1)):
        measurement = msgspec.structs.replace(
            trial.outcome.measurement, device=a_device(kind="estimated"), estimate=an_estimate(latency_ms)
        )
        outcome = msgspec.structs.replace(trial.outcome, measurement=measurement)
        trials.append(msgspec.structs.replace(trial, outcome=outcome))
    choice = a_choice(tuple(trials), a_budget(max_latency_ms=1.0), proven_on_target=False)
    return msgspec.structs.replace(choice, device=a_device(kind="estimated"), notes=("A remark of the request.",))


def test_an_estimate_is_labelled_judged_by_its_upper_end_and_names_its_calibration():
    choice = an_estimated_choice(0.7)
    document = build_document(choice)
    assert document.winner.number == 1
    assert document.winner.latency_ms.estimated
    assert document.winner.latency_ms.limit_ci95 == pytest.approx((0.49, 0.91))
    assert document.estimate.device.uri == "ssh://pi"
    assert document.proven_on_target is False
    text = shown(choice)
    assert "Latency, p90, estimated 0.700 ms 0.700 ms (≤ 0.910) ≤ 1 ms kept" in text
    assert "Latencies are estimated, not measured: by the calibration of 2026-11-24" in text
    assert "the phone was ssh://pi (onnxruntime 1.31.0). Its median error on 8 held-out networks was 10 %." in text
    assert "5.0 % of the time is in operators that it lacks" in text
    assert "nothing is proven on the target" in text
    assert "A remark of the request." in text


def test_an_estimate_whose_upper_end_is_over_the_limit_misses_it():
    document = build_document(an_estimated_choice(0.8))  # 1.04 ms at the upper end
    assert document.winner is None
    assert document.infeasible.binding == ("latency",)
    assert document.trial(1).misses[0].within_noise


def as_errors(*trials):
    """Return trials with a score of which lower is better."""
    return tuple(
        msgspec.structs.replace(
            trial,
            outcome=msgspec.structs.replace(
                trial.outcome, score=msgspec.structs.replace(trial.outcome.score, direction="lower")
            ),
        )
        for trial in trials
    )


def test_an_error_is_called_one_and_its_drop_an_increase():
    trials = as_errors(
        a_baseline(score=0.3), a_trial(1, score=0.305, drop=0.005, drop_ci95=(-0.001, 0.009)),
        a_trial(2, size_bytes=500, score=0.35, drop=0.05),
    )  # fmt: skip
    test = msgspec.structs.replace(a_test_result(), baseline_score=0.3, winner_score=0.31, direction="lower")
    choice = msgspec.structs.replace(a_choice(trials), test=test)
    text = shown(choice)
    assert "Error increase 0.0000 0.0050 (≤ 0.0090)" in text.replace("\u00a0", " ")
    assert "Score (error) 0.3000 0.3050" in text
    assert "misses error increase of up to 0.0500" in text
    assert "The error increase, −0.0010 to 0.0090 (95 %), is not distinguishable from zero" in text
    assert "winner 0.3100 (increase 0.0100" in text
    page = render_page(build_document(choice))
    assert "Error increase" in page
    assert "Score drop" not in page


def test_a_warning_about_the_scores_is_above_the_table_and_on_top_of_the_page():
    choice = msgspec.structs.replace(a_choice(), warnings=("The network answers <nothing>.",))
    text = shown(choice)
    assert text.index("Warning: The network answers <nothing>.") < text.index("fashion on phone")
    assert "Warning: The network answers &lt;nothing&gt;." in render_page(build_document(choice))


def test_notes_on_a_given_file_are_shown_and_those_on_an_exported_one_are_not():
    baseline = a_baseline()
    artifact = msgspec.structs.replace(
        baseline.outcome.artifact, exporter="given", notes=("64 inputs calibrate", "'x' cast")
    )
    given = msgspec.structs.replace(baseline, outcome=msgspec.structs.replace(baseline.outcome, artifact=artifact))
    assert "The given file: 64 inputs calibrate; 'x' cast." in of(given, a_trial(1, size_bytes=900))
    assert "The given file" not in of(baseline, a_trial(1, size_bytes=900))

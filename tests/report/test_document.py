"""``choice.json``: a golden file fixes its format; its values follow from the raw samples."""

import json
import math
from pathlib import Path

import msgspec
import pytest
from builders import (
    a_baseline,
    a_budget,
    a_choice,
    a_failed_trial,
    a_mixed_trial,
    a_slower_int8_trial,
    a_test_result,
    a_trial,
)

import edgeopt
from edgeopt.errors import DataError
from edgeopt.report.document import build_document, encode, read_document

GOLDEN = Path(__file__).parent / "golden" / "choice.json"
FIELDS = {
    "schema", "task", "target", "device", "proven_on_target", "budget", "baseline", "winner", "trials",
    "pareto_front", "infeasible", "test", "seconds",
}  # fmt: skip
TRIAL_FIELDS = {
    "number", "recipe", "status", "stage", "reason", "onnx", "sha256", "size_bytes", "download_bytes", "parameters",
    "nonzero_parameters", "macs", "latency_ms", "against_baseline", "load_ms", "peak_memory_bytes", "score",
    "score_drop", "score_drop_ci95", "providers", "misses", "against_float",
}  # fmt: skip


def document_of(*trials, **limits):
    return build_document(a_choice(trials or None, a_budget(**limits)))


def test_the_format_is_that_of_the_golden_file():
    choice = msgspec.structs.replace(a_choice(), test=a_test_result())
    found = encode(build_document(choice))
    if not GOLDEN.exists():  # after a deliberate change: remove it, run this once, read the difference
        GOLDEN.write_bytes(found)
    assert same(json.loads(found), json.loads(GOLDEN.read_bytes()))


def same(found, expected):
    """Equal except for the last digits of floats, which may differ between versions of numpy."""
    match found, expected:
        case dict(), dict():
            return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
        case list(), list():
            return len(found) == len(expected) and all(map(same, found, expected))
        case float(), float():
            return math.isclose(found, expected, rel_tol=1e-9)
        case _:
            return found == expected


def test_every_field_that_others_rely_on_is_there():
    document = json.loads(encode(document_of()))
    assert set(document) >= FIELDS
    assert document["schema"] == "edgeopt/choice-2"
    for trial in document["trials"]:
        assert set(trial) >= TRIAL_FIELDS
    assert {"uri", "kind"} <= set(document["device"])


def test_it_reads_back_as_it_was_written(tmp_path):
    document = document_of()
    (tmp_path / "choice.json").write_bytes(encode(document))
    assert read_document(tmp_path / "choice.json") == document


def test_a_reader_skips_fields_of_a_later_version(tmp_path):
    newer = json.loads(encode(document_of())) | {"cost_of_power": 3}
    newer["trials"][1]["energy_mj"] = 0.4
    (tmp_path / "choice.json").write_text(json.dumps(newer))
    assert read_document(tmp_path / "choice.json") == document_of()


def test_statistics_come_from_the_raw_samples():
    trial = document_of(a_baseline(), a_trial(1, latency_ms=0.2, spread=0.0)).trial(1)
    assert trial.latency_ms.p50 == pytest.approx(0.2)
    low, high = trial.latency_ms.limit_ci95
    assert low <= trial.latency_ms.limit <= high
    assert trial.against_baseline.verdict == "faster"
    assert trial.against_baseline.ci95[0] <= trial.against_baseline.latency_ratio <= trial.against_baseline.ci95[1]
    assert trial.throughput_per_s == pytest.approx(5000)
    assert trial.load_ms == 12.0
    assert trial.runs == 100


def test_an_int8_trial_is_compared_with_its_float_counterpart_and_names_the_slower_layers():
    trial = document_of(a_baseline(), a_slower_int8_trial()).trial(1)
    assert trial.against_float.verdict == "slower"
    assert trial.against_float.latency_ratio == pytest.approx(1.2, rel=0.02)
    first = trial.changes_against_float[0]
    assert (first.operator, first.shape, first.nodes) == ("Conv → QLinearConv", (1, 96, 28, 28), (2, 2))
    assert (first.float_ms, first.ms) == pytest.approx((0.108, 0.132))


def test_a_mixed_precision_trial_has_its_ranking_and_the_nodes_that_stay_float():
    trial = document_of(a_baseline(), a_mixed_trial()).trial(1)
    assert [(node.node, node.snr_db, node.stays_float) for node in trial.sensitivity] == [
        ("stem", 8.25, True), ("head", 14.0, True), ("body", 31.5, False),
    ]  # fmt: skip


def test_nan_becomes_null():
    trial = json.loads(encode(document_of(a_baseline(), a_trial(1, score=math.nan))))["trials"][1]
    assert (trial["score"], trial["score_drop"]) == (None, None)
    assert trial["misses"] == [{"limit": "score", "found": None, "allowed": 0.01, "within_noise": False}]


def test_a_failed_trial_has_its_stage_and_reason_and_no_numbers():
    trial = json.loads(encode(document_of(a_baseline(), a_failed_trial(1))))["trials"][1]
    assert (trial["status"], trial["stage"], trial["reason"]) == ("failed", "distill", "the loss is not finite")
    assert trial["size_bytes"] is None
    assert trial["misses"] is None


def test_without_a_winner_it_has_the_binding_limits_and_the_nearest_trial():
    document = json.loads(encode(document_of(max_size_bytes=100)))
    assert document["winner"] is None
    assert document["infeasible"]["binding"] == ["size", "score"]
    assert document["infeasible"]["nearest"] == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"{", "is not an edgeopt/choice-2 document"),
        (b'{"schema": "edgeopt/choice-2"}', "is not an edgeopt/choice-2 document"),
        (b'{"schema": "edgeopt/manifest-2"}', "is not an edgeopt/choice-2 document"),
    ],
)
def test_a_file_that_is_not_a_document_is_a_readable_error(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "choice.json").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_document(tmp_path / "choice.json")


@pytest.mark.parametrize("found", ["edgeopt/choice-1", "edgeopt/choice-3"])
def test_a_document_of_another_schema_is_refused_with_the_way_out(tmp_path, found):
    other = json.loads(encode(document_of())) | {"schema": found}
    (tmp_path / "choice.json").write_text(json.dumps(other))
    with pytest.raises(DataError) as caught:
        read_document(tmp_path / "choice.json")
    assert str(caught.value) == (
        f"{tmp_path / 'choice.json'} has the format {found}, but edgeopt {edgeopt.__version__} reads edgeopt/choice-2: "
        "build again, or use the edgeopt version that wrote it."
    )

"""``edgeopt build`` for several targets: one bundle for each, trained once, and one report about all of them."""

import json

import pytest
from building import TASK, choice_of, edgeopt, write_target

TARGETS = ("--target", "wide", "--target", "narrow", "--target", "away")
PROJECT = """
[limits]
max_drop = 0.3

[targets.wide]
device = "local:"

[targets.narrow.limits]
latency_ms = 50

[targets.away]
device = "ssh://127.0.0.1:1"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets-build")
    (folder / "targets").mkdir()
    write_target(folder / "targets" / "wide.toml")
    write_target(folder / "targets" / "narrow.toml", threads="2")
    write_target(folder / "targets" / "away.toml")
    (folder / "edgeopt.toml").write_text(PROJECT)
    return folder


@pytest.fixture(scope="module")
def built(folder):
    return edgeopt(folder, "build", TASK, "--quick", *TARGETS)


def test_each_target_has_its_result_and_one_that_fails_keeps_no_other_from_its(built, folder):
    assert built.returncode == 1, built.stderr
    assert "2 of 3 targets have a file within all limits" in built.stdout
    for name, limit in (("wide", 33.0), ("narrow", 50.0)):
        assert (folder / "edgeopt-out" / name / "model.onnx").is_file()
        assert choice_of(folder, f"edgeopt-out/{name}")["budget"]["max_latency_ms"] == limit
    assert not (folder / "edgeopt-out" / "away").exists()
    results = json.loads((folder / "edgeopt-out" / "targets.json").read_text())["results"]
    assert [(one["target"], one["error"] is None) for one in results] == [
        ("wide", True), ("narrow", True), ("away", False),
    ]  # fmt: skip
    assert "127.0.0.1" in results[2]["error"]
    page = (folder / "edgeopt-out" / "report.html").read_text()
    for part in ('id="target-wide"', 'href="narrow/report.html#trial-0"', 'id="wide-score-title"', "127.0.0.1"):
        assert part in page, part


def test_what_the_first_target_trained_the_second_only_measures(built, folder):
    assert "candidates from searches for other targets" in built.stderr
    wide, narrow = (choice_of(folder, f"edgeopt-out/{name}") for name in ("wide", "narrow"))
    pruned = [
        {json.dumps(trial["recipe"]["torch_steps"]) for trial in choice["trials"] if trial["recipe"]["torch_steps"]}
        for choice in (wide, narrow)
    ]
    assert pruned[0] == pruned[1]
    assert not [line for line in built.stderr.splitlines() if line.startswith("train: narrow")]
    times = [[trial["latency_ms"] for trial in choice["trials"] if trial["latency_ms"]] for choice in (wide, narrow)]
    assert not [one for one in times[0] if one in times[1]]  # with two threads all was measured anew


def test_the_report_of_all_targets_is_printed_again(built, folder):
    done = edgeopt(folder, "report", "edgeopt-out", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout == built.stdout
    assert (folder / "page.html").read_text() == (folder / "edgeopt-out" / "report.html").read_text()
    as_json = edgeopt(folder, "report", "edgeopt-out", "--json")
    assert as_json.stdout == (folder / "edgeopt-out" / "targets.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--target", "wide", "--target", "wide"), "a target is named twice"),
        (("--target", "wide", "--target", "unknown"), "there is no target 'unknown'"),
        (("--target", "wide", "--target", "narrow", "--device", "local:"), r"set `device` under [targets.NAME]"),
        (("--target", "wide", "--target", "narrow", "--out", "edgeopt-out/wide"), "is the bundle of a build for one"),
        (("--target", "wide"), "holds files that edgeopt did not write"),
    ],
)
def test_targets_that_do_not_fit_together_are_refused(built, folder, arguments, problem):
    done = edgeopt(folder, "build", TASK, *arguments)
    assert done.returncode == 2, done.stderr
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_with_limits_that_does_not_exist_is_named(folder, tmp_path):
    (tmp_path / "edgeopt.toml").write_text("[targets.phome.limits]\nlatency_ms = 3\n")
    done = edgeopt(tmp_path, "build", TASK, "--target", "phone")
    assert done.returncode == 2
    assert "there is no target 'phome' (did you mean 'phone'?)" in done.stderr

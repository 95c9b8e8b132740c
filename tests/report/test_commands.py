"""``edgeopt report``, ``history`` and ``show``, each command on real files."""

import json
import re

import pytest
from builders import a_baseline, a_choice, a_failed_trial, a_trial, a_trial_with_a_float_prefix
from click.testing import CliRunner

from edgeopt.cli import history, report, show
from edgeopt.errors import DataError, InputError, WorkspaceError
from edgeopt.report.document import build_document, encode
from edgeopt.store.ledger import Ledger


def run(command, *arguments):
    """The command's stdout with each run of spaces made one; deliberate errors are raised."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "choice.json").write_bytes(encode(build_document(a_choice())))
    return folder


@pytest.fixture
def workspace(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    phone = (a_baseline(), a_trial(1), a_failed_trial(2), a_trial_with_a_float_prefix(3, time_ratio=0.5))
    for target, trials in (("phone", phone), ("car", (a_baseline(),))):
        build = ledger.start_build("fashion", target, "fingerprint")
        for trial in trials:
            ledger.add_trial(build, trial)
    ledger.close()
    return tmp_path


def test_report_prints_the_result_of_a_bundle_again(folder):
    assert "Trial 2 keeps every limit at 900 B." in run(report.command, folder)
    assert json.loads(run(report.command, folder, "--json"))["winner"]["number"] == 2


def test_report_writes_a_new_page_outside_the_bundle(folder, tmp_path):
    run(report.command, folder, "--html", tmp_path / "page.html")
    assert "Trial 2 keeps every limit" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="is inside the bundle"):
        run(report.command, folder, "--html", folder / "report.html")
    with pytest.raises(InputError, match="cannot be written"):
        run(report.command, folder, "--html", tmp_path / "missing" / "page.html")


def test_report_of_a_folder_without_a_result_is_a_readable_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        run(report.command, tmp_path)


def test_history_lists_builds_and_the_trials_of_one(workspace):
    builds = run(history.command, "--workspace", workspace)
    assert "1 fashion phone" in builds
    assert builds.index("fashion car") < builds.index("fashion phone")
    trials = run(history.command, 1, "--workspace", workspace)
    assert "pruned to 10 % of the parameters" in trials
    assert "(failed: distill)" in trials
    assert [row["trials"] for row in json.loads(run(history.command, "--workspace", workspace, "--json"))] == [1, 4]


def test_show_prints_everything_about_one_trial(workspace):
    text = run(show.command, 1, "--build", 1, "--workspace", workspace)
    assert "Trial 1: pruned to 10 % of the parameters (taylor), distilled for 8 epochs, float32" in text
    assert "latency p90 0.20" in text
    assert "against baseline 0.24" in text
    assert '"temperature": 4.0' in text
    record = json.loads(run(show.command, 1, "--build", 1, "--workspace", workspace, "--json"))
    assert len(record["outcome"]["measurement"]["timings"]) == 5


def test_show_prints_the_comparison_with_the_full_int8_trial(workspace):
    text = run(show.command, 3, "--build", 1, "--workspace", workspace)
    assert re.search(r"against trial 1 0\.[45]\d* of its time \(95 %: [\d.]+ to [\d.]+\): faster", text)


def test_show_prints_the_traceback_of_a_failed_trial(workspace):
    text = run(show.command, 2, "--build", 1, "--workspace", workspace)
    assert "failed at distill reason the loss is not finite" in text
    assert "Traceback: ..." in text


def test_the_newest_build_is_shown_unless_another_is_named(workspace):
    with pytest.raises(InputError, match="build 2 has no trial 1"):
        run(show.command, 1, "--workspace", workspace)
    with pytest.raises(InputError, match="there is no build 9"):
        run(show.command, 1, "--build", 9, "--workspace", workspace)


def test_a_folder_without_a_ledger_is_an_error_and_stays_empty(tmp_path):
    with pytest.raises(WorkspaceError, match="has no ledger"):
        run(history.command, "--workspace", tmp_path)
    assert list(tmp_path.iterdir()) == []

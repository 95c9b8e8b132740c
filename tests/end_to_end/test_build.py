"""`edgeopt build` as users run it: a subprocess, a real task, real files. Most tests share one workspace."""

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
from building import TASK, TESTS, choice_of, edgeopt, write_target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a target; `first` adds a finished build."""
    folder = tmp_path_factory.mktemp("project")
    write_target(folder / "tiny.toml")
    return folder


@pytest.fixture(scope="module")
def first(folder):
    done = edgeopt(folder, "build", TASK, "--target", "tiny.toml")
    assert done.returncode == 0, done.stderr
    return done


def rebuild(folder, *limits):
    """Build again in the finished workspace with other limits."""
    out = "other"
    done = edgeopt(folder, "build", TASK, "--target", "tiny.toml", "--out", out, *limits)
    return done, choice_of(folder, out)


def test_the_bundle_holds_the_files_of_the_manifest(first, folder):
    out = folder / "edgeopt-out"
    manifest = json.loads((out / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == facts["sha256"], name
    assert {"model.onnx", "choice.json", "report.html"} <= set(manifest["files"])
    winner = choice_of(folder)["winner"]
    assert winner["size_bytes"] == (out / "model.onnx").stat().st_size
    assert winner["sha256"] == hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()


def test_the_winner_is_quantized_and_smaller_than_the_baseline_and_pruned_trials_exist(first, folder):
    choice = choice_of(folder)
    assert choice["winner"]["size_bytes"] < 0.5 * choice["baseline"]["size_bytes"]
    steps = [step["step"] for step in choice["winner"]["recipe"]["graph_steps"]]
    assert "quantize" in steps
    assert any(trial["recipe"]["torch_steps"] for trial in choice["trials"])
    assert choice["proven_on_target"] is False
    assert choice["test"]["samples"] == 256
    assert "baseline" in first.stdout
    assert "error" not in first.stderr.lower()


def test_the_final_file_of_every_trial_was_scored_and_measured(first, folder):
    for trial in choice_of(folder)["trials"]:
        assert trial["status"] == "measured", trial["reason"]
        assert (folder / ".edgeopt" / "artifacts" / f"{trial['sha256']}.onnx").is_file()
        low, high = trial["latency_ms"]["limit_ci95"]
        assert 0 < low <= high
        assert trial["peak_memory_bytes"] > 0


def test_widths_of_pruned_candidates_come_from_measured_layer_times(first, folder):
    pruned = [trial for trial in choice_of(folder)["trials"] if "prune" in str(trial["recipe"]["torch_steps"])]
    assert pruned
    for trial in pruned:
        assert any(
            note.startswith("widths chosen by measured latency: predicted to take 0.") for note in trial["notes"]
        ), trial["notes"]
    assert choice_of(folder)["seconds"]["latency table"] > 0
    assert list((folder / ".edgeopt" / "latency").glob("*.json"))


def test_the_students_of_a_task_are_tried(first, folder):
    steps = [step for trial in choice_of(folder)["trials"] for step in trial["recipe"]["torch_steps"]]
    assert {"step": "student", "name": "narrow"} in steps


def parts_of(folder):
    """Return the number of parts of each kind in a workspace: each training, file, score and measurement adds one."""
    with sqlite3.connect(folder / ".edgeopt" / "ledger.sqlite") as ledger:
        found = ledger.execute(
            "select kind, count(*), max(finished_at) from parts group by kind order by kind"
        ).fetchall()
    ledger.close()
    return found


def test_the_same_command_again_trains_and_measures_nothing(first, folder):
    before, parts = choice_of(folder), parts_of(folder)
    again = edgeopt(folder, "build", TASK, "--target", "tiny.toml", "--json")
    assert again.returncode == 0, again.stderr
    assert "train:" not in again.stderr
    after = json.loads(again.stdout)
    assert [trial["sha256"] for trial in after["trials"]] == [trial["sha256"] for trial in before["trials"]]
    assert after["winner"]["sha256"] == before["winner"]["sha256"]
    assert parts_of(folder) == parts


def test_the_score_limit_is_named_if_it_binds(first, folder):
    trials = [trial for trial in choice_of(folder)["trials"] if trial["status"] == "measured"]
    smallest = min(trials, key=lambda trial: trial["size_bytes"])
    min_score = smallest["score"] + 1e-6
    done, choice = rebuild(folder, "--max-drop", "none", "--min-score", min_score)
    assert "train:" not in done.stderr
    if choice["winner"] is None:
        assert choice["infeasible"]["binding"] == ["score"]
    else:
        assert choice["winner"]["sha256"] != smallest["sha256"]
        assert "score" in done.stdout


@pytest.mark.parametrize(
    ("option", "limit"), [("--latency-ms", "latency"), ("--memory-mb", "memory"), ("--size-mb", "size")]
)
def test_a_limit_that_nothing_keeps_is_named_with_a_limit_that_would_be_enough(first, folder, option, limit):
    done, choice = rebuild(folder, option, "0.000001", "--no-train")
    assert done.returncode == 3, done.stderr
    assert "train:" not in done.stderr
    assert choice["winner"] is None
    assert choice["infeasible"]["binding"] == [limit]
    assert choice["infeasible"]["nearest"] is not None
    assert not (folder / "other" / "model.onnx").exists()
    assert limit in done.stdout
    assert "without --no-train the search goes on" in " ".join(done.stdout.split())


def test_a_limit_that_no_trial_keeps_continues_a_finished_search(first, folder, tmp_path):
    shutil.copytree(folder / ".edgeopt", tmp_path / ".edgeopt")
    write_target(tmp_path / "tiny.toml")
    before, limits = choice_of(folder), ("--size-mb", "0.001", "--max-drop", "0.9")
    done = edgeopt(tmp_path, "build", TASK, "--target", "tiny.toml", *limits)
    assert done.returncode == 3, done.stderr
    assert "No trial of the finished search keeps these limits, so it goes on" in done.stderr
    after = choice_of(tmp_path)
    trained = {trial["sha256"] for trial in after["trials"]}
    assert {trial["sha256"] for trial in before["trials"]} <= trained
    again = edgeopt(tmp_path, "build", TASK, "--target", "tiny.toml", *limits, "--no-train")
    assert again.returncode == 3, again.stderr
    assert "train:" not in again.stderr
    assert {trial["sha256"] for trial in choice_of(tmp_path)["trials"]} == trained
    easy = edgeopt(tmp_path, "build", TASK, "--target", "tiny.toml", "--no-train")
    assert easy.returncode == 0, easy.stderr
    assert "goes on" not in easy.stdout


def test_more_and_no_train_contradict_each_other(tmp_path):
    done = edgeopt(tmp_path, "build", TASK, "--target", "phone", "--more", "--no-train")
    assert (done.returncode, "give one of them" in done.stderr) == (2, True)


def test_every_missed_limit_is_named_if_no_trial_keeps_all_limits(first, folder):
    done, choice = rebuild(folder, "--size-mb", "0.000001", "--min-score", "0.9999", "--no-train")
    assert done.returncode == 3
    assert set(choice["infeasible"]["binding"]) == {"size", "score"}


def test_a_waived_limit_is_shown(first, folder):
    done, choice = rebuild(folder, "--memory-mb", "none")
    assert done.returncode == 0
    assert choice["budget"]["max_peak_memory_bytes"] is None
    assert "waived" in done.stdout


def test_no_training_starts_after_the_time_limit(tmp_path):
    write_target(tmp_path / "tiny.toml")
    done = edgeopt(tmp_path, "build", TASK, "--target", "tiny.toml", "--time-limit", "0.001")
    assert done.returncode == 0, done.stderr
    assert "time limit" in done.stderr
    assert "train:" not in done.stderr
    choice = choice_of(tmp_path)
    assert not any(trial["recipe"]["torch_steps"] for trial in choice["trials"])
    assert choice["winner"]["size_bytes"] < choice["baseline"]["size_bytes"]


@pytest.mark.slow
def test_more_continues_a_finished_search_and_a_download_counts_its_deflated_size(first, folder, tmp_path):
    shutil.copytree(folder / ".edgeopt", tmp_path / ".edgeopt")
    write_target(tmp_path / "tiny.toml", size_metric='"download"')
    done = edgeopt(tmp_path, "build", TASK, "--target", "tiny.toml", "--more")
    assert done.returncode == 0, done.stderr
    before, after = choice_of(folder), choice_of(tmp_path)
    reused = {trial["sha256"] for trial in before["trials"]}
    assert reused <= {trial["sha256"] for trial in after["trials"]}
    sparse = [t for t in after["trials"] if any(step["step"] == "sparsify" for step in t["recipe"]["torch_steps"])]
    assert sparse
    assert all(trial["nonzero_parameters"] < 0.8 * trial["parameters"] for trial in sparse)
    keeping = [trial for trial in after["trials"] if trial["status"] == "measured" and not trial["misses"]]
    assert after["winner"]["download_bytes"] == min(trial["download_bytes"] for trial in keeping)
    assert after["winner"]["download_bytes"] < before["winner"]["download_bytes"]


def test_a_finished_search_with_other_training_settings_is_not_reused(first, folder, tmp_path):
    shutil.copytree(folder / ".edgeopt", tmp_path / ".edgeopt")
    write_target(tmp_path / "tiny.toml")
    (tmp_path / "tuned.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        "import msgspec, tiny_task\n"
        "def task():\n"
        "    task = tiny_task.task()\n"
        "    task.training = msgspec.structs.replace(task.training, learning_rate=0.01)\n"
        "    return task\n"
    )
    done = edgeopt(tmp_path, "build", "tuned.py:task", "--target", "tiny.toml", "--time-limit", "0.001")
    assert done.returncode == 0, done.stderr
    assert "a finished search" not in done.stderr
    assert "time limit" in done.stderr
    baseline = choice_of(folder)["baseline"]
    assert choice_of(tmp_path)["baseline"]["sha256"] == baseline["sha256"]


def assert_same_winner(choice, printed, other, other_printed):
    """Check that two builds ship the same file; its bytes are equal if trainings ran alike in both.

    A build measures how many threads a lone training uses, and whether it multiplies in bfloat16: sums in another order
    or precision differ in their last bits.
    """
    ways = [re.search(r"a lone training uses (.*)", text)[1] for text in (printed, other_printed)]
    assert choice["winner"]["size_bytes"] == other["winner"]["size_bytes"]
    assert choice["winner"]["score"] == pytest.approx(other["winner"]["score"], abs=0.01)
    if ways[0] == ways[1]:
        assert choice["winner"]["sha256"] == other["winner"]["sha256"]


def test_a_killed_build_loses_no_finished_work_and_finds_the_same_winner_when_run_again(first, folder, tmp_path):
    write_target(tmp_path / "tiny.toml")
    command = [sys.executable, "-m", "edgeopt", "build", TASK, "--target", "tiny.toml"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / ".edgeopt" / "checkpoints"
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("*.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with sqlite3.connect(tmp_path / ".edgeopt" / "ledger.sqlite") as ledger:
        finished = ledger.execute("select count(*) from trials").fetchone()[0]
    ledger.close()
    assert finished >= 2
    assert not (tmp_path / "edgeopt-out").exists()
    done = edgeopt(tmp_path, "build", TASK, "--target", "tiny.toml")
    assert done.returncode == 0, done.stderr
    assert re.search(r"resume: an interrupted build left .*\d+ files?.*, made in \d", done.stderr)
    resumed, uninterrupted = choice_of(tmp_path), choice_of(folder)
    assert resumed["seconds"]["before an interruption"] > 1
    assert "before an interruption" not in uninterrupted["seconds"]
    assert resumed["winner"]["recipe"] == uninterrupted["winner"]["recipe"]
    assert_same_winner(resumed, done.stderr, uninterrupted, first.stderr)


FULL_DISK = """
mkdir ws && mount -t tmpfs -o size={size} none ws || exit 99
"$@" > first.out 2> first.err; echo $? > first.code
mount -o remount,size=64m ws
"$@"
"""
"""A build in a workspace on a small disk, then the same command on a larger one."""
MOUNTING_FAILED = 99


@pytest.mark.parametrize(
    "size", [pytest.param("200k", marks=pytest.mark.slow), "700k", pytest.param("2500k", marks=pytest.mark.slow)]
)
def test_a_full_disk_is_reported_and_the_same_command_continues_once_there_is_space(first, folder, tmp_path, size):
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed: cannot make a small disk")
    write_target(tmp_path / "tiny.toml")
    training = [] if size != "700k" else ["--no-train"]  # the files of the original alone fill that disk
    command = [sys.executable, "-m", "edgeopt", "build", TASK, "--target", "tiny.toml", "--workspace", "ws", *training]
    script = ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL_DISK.format(size=size), "sh", *command]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode == MOUNTING_FAILED or "unshare" in done.stderr:
        pytest.skip(f"cannot mount a disk here: {done.stderr}")
    message = (tmp_path / "first.err").read_text()
    assert (tmp_path / "first.code").read_text().strip() == "2"
    assert message.count("the disk is full") == 1
    assert "--workspace" in message
    assert "Traceback" not in message
    assert (tmp_path / "first.out").read_text() == ""
    assert done.returncode == 0, done.stderr
    if not training:
        assert_same_winner(choice_of(tmp_path), done.stderr, choice_of(folder), first.stderr)


def test_ctrl_c_reports_that_finished_work_is_kept(tmp_path):
    write_target(tmp_path / "tiny.toml")
    command = [sys.executable, "-m", "edgeopt", "build", TASK, "--target", "tiny.toml"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    artifacts = tmp_path / ".edgeopt" / "artifacts"
    deadline = time.monotonic() + 300
    while not list(artifacts.glob("*.onnx")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # like a terminal, to every process of the group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "kept" in err
    assert out == ""


def test_a_bundle_has_the_same_score_on_the_whole_evaluation_set_when_checked(first, folder):
    done = edgeopt(folder, "check", "edgeopt-out", "--target", "tiny.toml", "--score", TASK, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    winner, score = choice_of(folder)["winner"], json.loads(done.stdout)["score"]
    assert score["score"]["value"] == score["built"] == winner["score"]
    assert (score["score"]["drop"], score["score"]["samples"]) == (winner["score_drop"], 512)


def test_a_given_onnx_file_is_simplified_quantized_and_scored(first, folder, tmp_path):
    given = folder / "edgeopt-out" / ".." / ".edgeopt" / "artifacts" / f"{choice_of(folder)['baseline']['sha256']}.onnx"
    (tmp_path / "given.onnx").write_bytes(given.read_bytes())
    np.savez(tmp_path / "in.npz", input=np.random.default_rng(0).standard_normal((160, 1, 8, 8)).astype(np.float32))
    write_target(tmp_path / "tiny.toml")
    done = edgeopt(tmp_path, "build", "given.onnx", "--data", "in.npz", "--target", "tiny.toml")
    assert done.returncode == 0, done.stderr
    choice = choice_of(tmp_path)
    assert choice["baseline"]["score"] == 1.0
    assert choice["winner"]["size_bytes"] < choice["baseline"]["size_bytes"]
    assert any("agreement" in note for trial in choice["trials"] for note in trial.get("notes", []))

    score = ["--score", "given.onnx", "--data", "in.npz"]
    done = edgeopt(tmp_path, "check", "edgeopt-out", "--target", "tiny.toml", *score, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["score"]["score"]["value"] == choice["winner"]["score"]

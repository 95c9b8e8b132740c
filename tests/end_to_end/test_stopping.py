"""``edgeopt stop`` and ``--time-limit`` end a build that trains, with the best file so far; later it goes on."""

import re
import subprocess
import sys
import time

import pytest
from building import TESTS, choice_of, edgeopt, write_target

LONG = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import msgspec, tiny_task
def task():
    task = tiny_task.task()
    task.training = msgspec.structs.replace(task.training, epochs=100000, min_steps=0)
    return task
"""
BUILD = ("build", "long.py:task", "--target", "tiny.toml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    write_target(folder / "tiny.toml")
    (folder / "long.py").write_text(LONG)
    return folder


def trained_epochs(folder):
    log = folder / ".edgeopt" / "log.txt"
    return log.read_text().count(" of 100000, score ") if log.is_file() else 0


def assert_ended_with_a_file(folder, stdout, stderr):
    choice = choice_of(folder)
    assert choice["winner"]["size_bytes"] < choice["baseline"]["size_bytes"]
    unfinished = [trial for trial in choice["trials"] if trial["failure"] == "unfinished"]
    assert unfinished
    assert all("the time was over in epoch" in trial["reason"] for trial in unfinished)
    assert choice["failed_trainings"] is None
    assert "not finished when the time was over" in " ".join(stdout.split())
    assert list((folder / ".edgeopt" / "checkpoints").glob("*.safetensors")), stderr


@pytest.fixture(scope="module")
def stopped(folder):
    """Run a build and stop it after a few epochs; return its output."""
    nothing = edgeopt(folder, "stop")
    assert (nothing.returncode, "no build runs in .edgeopt" in nothing.stderr) == (2, True)
    command = [sys.executable, "-m", "edgeopt", *BUILD]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as build:
        end = time.monotonic() + 300
        while trained_epochs(folder) < 4:
            assert build.poll() is None, build.communicate()
            assert time.monotonic() < end, "nothing trained"
            time.sleep(0.2)
        stop = edgeopt(folder, "stop")
        assert stop.returncode == 0, stop.stderr
        assert f"process {build.pid}" in stop.stdout
        stdout, stderr = build.communicate(timeout=200)
    assert build.returncode == 0, stderr
    return stdout, stderr


def test_stop_ends_the_build_of_a_workspace_with_the_best_file_so_far(stopped, folder):
    assert_ended_with_a_file(folder, *stopped)
    again = edgeopt(folder, "stop")
    assert again.returncode == 2, again.stdout


@pytest.mark.slow
def test_a_time_limit_ends_a_training_too_which_went_on_from_its_last_epoch(stopped, folder):
    before = trained_epochs(folder)
    done = edgeopt(folder, *BUILD, "--time-limit", "1.5")  # all but the training is in the workspace
    assert done.returncode == 0, done.stderr
    assert_ended_with_a_file(folder, done.stdout, done.stderr)
    epochs = [
        int(one)
        for one in re.findall(r": epoch (\d+) of 100000, score ", (folder / ".edgeopt" / "log.txt").read_text())
    ]
    assert len(epochs) > before
    assert max(epochs[before:]) > max(epochs[:before])

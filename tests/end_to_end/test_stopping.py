"""``edgeopt stop`` and ``--time-limit`` end a build that trains, with the best file so far; later it goes on."""

import os
import re
import subprocess
import sys
import time

import pytest
from building import TESTS, choice_of, edgeopt, write_target

EPOCHS = 24
LONG = f"""
import os, sys, time
sys.path.insert(0, {str(TESTS)!r})
import tiny_task
import edgeopt

def slow_batches(seed):
    time.sleep(float(os.environ.get("SECONDS_PER_EPOCH", "0")))
    return tiny_task.batches(256, seed)

def task():
    return edgeopt.classification(
        tiny_task.trained, slow_batches, tiny_task.batches(512, 1000), name="long",
        training=edgeopt.Training(epochs={EPOCHS}, learning_rate=0.05, min_steps=0),
    )
"""
BUILD = ("build", "long.py:task", "--target", "tiny.toml")
TRAINED = re.compile(rf"train: (.+): epoch (\d+) of {EPOCHS}, score ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    write_target(folder / "tiny.toml")
    (folder / "long.py").write_text(LONG)
    return folder


def trained_epochs(folder, begin=0):
    """Return the epochs that were trained, by candidate, as the log tells from some line on."""
    log = folder / ".edgeopt" / "log.txt"
    epochs = {}
    for line in log.read_text().splitlines()[begin:] if log.is_file() else []:
        if found := TRAINED.search(line):
            epochs.setdefault(found[1], []).append(int(found[2]))
    return epochs


def log_lines(folder):
    return len((folder / ".edgeopt" / "log.txt").read_text().splitlines())


def cut_off_trials(choice):
    """Return the trials whose trainings were cut off, by the number of epochs."""
    return [
        (trial, trial["recipe"]["torch_steps"][-1]["ended_after"])
        for trial in choice["trials"]
        if trial["recipe"]["torch_steps"] and "ended_after" in trial["recipe"]["torch_steps"][-1]
    ]


def assert_ended_with_what_was_trained(folder, stdout):
    choice = choice_of(folder)
    found = cut_off_trials(choice)
    assert found
    for trial, epochs in found:
        assert trial["status"] == "measured", trial["reason"]
        note = f"the training was cut off after {epochs} of {EPOCHS} epochs, because the time was over"
        assert note in trial["notes"]
    assert choice["winner"]["number"] in [trial["number"] for trial, _ in found]
    assert choice["winner"]["parameters"] < choice["baseline"]["parameters"]
    assert choice["failed_trainings"] is None
    assert "cut off when the time was over" in " ".join(stdout.split())
    assert list((folder / ".edgeopt" / "checkpoints").glob("*.safetensors"))


@pytest.fixture(scope="module")
def stopped(folder):
    """Run a build, stop it after a few epochs, and return its output and the seconds that it took to end."""
    nothing = edgeopt(folder, "stop")
    assert (nothing.returncode, "no build runs in .edgeopt" in nothing.stderr) == (2, True)
    command = [sys.executable, "-m", "edgeopt", *BUILD]
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | {"SECONDS_PER_EPOCH": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as build:  # fmt: skip
        end = time.monotonic() + 600
        while sum(map(len, trained_epochs(folder).values())) < 4:
            assert build.poll() is None, build.communicate()
            assert time.monotonic() < end, "nothing trained"
            time.sleep(0.2)
        stop = edgeopt(folder, "stop")
        assert stop.returncode == 0, stop.stderr
        assert f"process {build.pid}" in stop.stdout
        began = time.monotonic()
        stdout, stderr = build.communicate(timeout=400)
    assert build.returncode == 0, stderr
    return stdout, time.monotonic() - began


def test_stop_ends_a_build_with_the_networks_whose_trainings_it_cuts_off(stopped, folder):
    stdout, seconds = stopped
    print(f"ended {seconds:.0f} s after `edgeopt stop`")
    assert_ended_with_what_was_trained(folder, stdout)
    assert all(max(epochs) < EPOCHS for epochs in trained_epochs(folder).values())
    again = edgeopt(folder, "stop")
    assert again.returncode == 2, again.stdout


@pytest.fixture(scope="module")
def limited(stopped, folder):
    """Build again with a time limit that ends before a training does; return the output, and epochs before and now."""
    before, begin = trained_epochs(folder), log_lines(folder)
    done = edgeopt(folder, *BUILD, "--time-limit", "1.5", SECONDS_PER_EPOCH="3")
    assert done.returncode == 0, done.stderr
    return done.stdout, before, trained_epochs(folder, begin)


@pytest.mark.slow
def test_a_time_limit_ends_a_training_too_which_went_on_from_its_last_epoch(limited, folder):
    stdout, before, epochs = limited
    assert_ended_with_what_was_trained(folder, stdout)
    assert epochs
    assert all(found[0] == max(before.get(candidate, [0])) + 1 for candidate, found in epochs.items())


def test_without_a_limit_the_same_command_trains_on_to_the_end(stopped, folder):
    before, begin = trained_epochs(folder), log_lines(folder)
    smallest = choice_of(folder)["winner"]["size_bytes"]
    done = edgeopt(folder, *BUILD)
    assert done.returncode == 0, done.stderr
    after = trained_epochs(folder, begin)
    for candidate, epochs in before.items():
        assert after.get(candidate, []) == list(range(max(epochs) + 1, EPOCHS + 1)), "it went on from its last epoch"
    choice = choice_of(folder)
    assert not cut_off_trials(choice)
    assert choice["winner"]["size_bytes"] <= smallest
    assert not list((folder / ".edgeopt" / "checkpoints").glob("*.safetensors"))
    assert "cut off" not in done.stdout

"""Progress: one live line on a terminal, plain lines elsewhere, nothing with quiet."""

import json
import os
import pty
import subprocess
import sys

from edgeopt.cli.console import LINE_INTERVAL_SECONDS, ProgressDisplay
from edgeopt.logs import log_to_file

ERASED_LINE = "\x1b[2K"


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_each_stage_writes_a_line_when_it_begins(capsys):
    with ProgressDisplay(clock=Clock()) as progress:
        progress("export", "dynamo")
        progress("measure", "trial 1")
        progress("done")
    assert capsys.readouterr() == ("", "export: dynamo\nmeasure: trial 1\ndone\n")


def test_a_long_stage_writes_a_line_every_ten_seconds(capsys):
    clock = Clock()
    with ProgressDisplay(clock=clock) as progress:
        for epoch in range(100):
            clock.seconds = epoch * LINE_INTERVAL_SECONDS / 25
            progress("train", f"epoch {epoch}")
    assert capsys.readouterr().err.splitlines() == [f"train: epoch {epoch}" for epoch in (0, 25, 50, 75)]


def test_quiet_writes_nothing(capsys):
    with ProgressDisplay(quiet=True) as progress:
        progress("train", "epoch 1")
    assert capsys.readouterr() == ("", "")


def test_the_best_so_far_is_shown_without_ending_the_stage(capsys):
    clock = Clock()
    with ProgressDisplay(clock=clock) as progress:
        progress("measure", "trial 1")
        progress("best so far", "trial 1, 20 kB")
        clock.seconds = LINE_INTERVAL_SECONDS / 2
        progress("measure", "trial 2")
    assert capsys.readouterr().err.splitlines() == ["measure: trial 1", "best so far: trial 1, 20 kB"]


def test_progress_as_json_has_a_line_for_every_call(capsys):
    clock = Clock()
    with ProgressDisplay(as_json=True, clock=clock) as progress:
        progress("train", "epoch 1")
        clock.seconds = 1.26
        progress("best so far", "trial 1, 20 kB")
        progress("train", "epoch 2")
    assert [json.loads(line) for line in capsys.readouterr().err.splitlines()] == [
        {"elapsed_s": 0.0, "stage": "train", "detail": "epoch 1"},
        {"elapsed_s": 1.3, "stage": "best so far", "detail": "trial 1, 20 kB"},
        {"elapsed_s": 1.3, "stage": "train", "detail": "epoch 2"},
    ]


def test_the_debug_log_gets_every_step(tmp_path):
    with log_to_file(tmp_path / "log.txt"), ProgressDisplay(quiet=True, clock=Clock()) as progress:
        for epoch in range(3):
            progress("train", f"epoch {epoch}, loss 50 %s")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition(": ")[2] for line in lines] == [f"train: epoch {epoch}, loss 50 %s" for epoch in range(3)]


def test_a_terminal_shows_a_live_line_that_is_erased_at_the_end():
    shown = run_on_a_terminal("time.sleep(1.2)")
    assert "epoch 3 of 8" in shown
    assert shown.rstrip().endswith(ERASED_LINE)


def test_debug_messages_stand_above_the_live_line():
    shown = run_on_a_terminal(
        "time.sleep(1.2); logging.getLogger('edgeopt.device').debug('uploading'); time.sleep(1.2)"
    )
    message = next(line for line in shown.splitlines() if "edgeopt.device: uploading" in line)
    assert "epoch 3 of 8" not in message
    assert "epoch 3 of 8" in shown.partition("uploading")[2]  # the live line goes on below
    assert shown.rstrip().endswith(ERASED_LINE)


def run_on_a_terminal(body):
    """Return everything that a progress display and the debug log write to a terminal while the body runs."""
    code = (
        "import logging, time\n"
        "from edgeopt.cli.console import ProgressDisplay\n"
        "from edgeopt.logs import log_to_stderr\n"
        f"with log_to_stderr(), ProgressDisplay() as progress: progress('train', 'epoch 3 of 8'); {body}\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm"}, text=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 0
    return shown


def test_the_time_left_is_a_range_that_counts_down_and_json_has_its_seconds(capsys):
    clock = Clock()
    with ProgressDisplay(clock=clock) as progress:
        progress("time left", "100 290")
        progress("train", "epoch 2 of 8")
        clock.seconds = 70.0
        progress("measure", "trial 3")
        clock.seconds = 400.0
        progress("bundle")
    assert capsys.readouterr().err.splitlines() == [
        "train: epoch 2 of 8, 1 to 5 min left in all",
        "measure: trial 3, 0 to 4 min left in all",
        "bundle, about 1 min left in all",
    ]
    with ProgressDisplay(as_json=True, clock=clock) as progress:
        progress("time left", "100 290")
        progress("time left", "my car: 100 290")
    line, of_target = map(json.loads, capsys.readouterr().err.splitlines())
    assert line == {"elapsed_s": 0.0, "stage": "time left", "detail": "1 to 5 min", "left_s": [100, 290]}
    assert of_target == line | {"detail": "my car: 1 to 5 min"}
    with ProgressDisplay(clock=clock) as progress:
        progress("time left", "car: 100 290")
        progress("train", "car: epoch 2 of 8")
    assert capsys.readouterr().err == "train: car: epoch 2 of 8, 1 to 5 min left for car\n"

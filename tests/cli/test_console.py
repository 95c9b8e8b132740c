"""Progress: lines where stderr is no terminal, one live line where it is one, nothing when quiet."""

import os
import pty
import subprocess
import sys

from edgeopt.cli.console import LINE_INTERVAL_SECONDS, ProgressDisplay


class Clock:
    """A clock that a test sets."""

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


def test_a_stage_that_goes_on_writes_seldom(capsys):
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


def test_a_terminal_gets_a_live_line_that_is_gone_at_the_end():
    code = (
        "import time; from edgeopt.cli.console import Progress\n"
        "with Progress() as progress: progress('train', 'epoch 3 of 8'); time.sleep(1.2)\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm"}, text=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "epoch 3 of 8" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the last thing written erases the line

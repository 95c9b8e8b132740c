"""The swap: at any moment the old folder or the new one is there, complete, even if the process is killed."""

import random
import signal
import subprocess
import sys
import time

import pytest

from edgeopt.bundle import swap
from edgeopt.bundle.swap import building_path, former_path, recover, swap_in

FILES = 20
KILLS = 8  # spread over the duration of a few swaps; each one starts Python

ENDLESS_SWAPS = """
import sys
from pathlib import Path
from edgeopt.bundle import swap
out, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
if not exchange:
    swap._exchange = lambda new, out: False
number = 0
while True:
    number += 1
    swap.recover(out)
    new = swap.building_path(out)
    new.mkdir()
    for index in range(20):
        (new / f"{index}").write_text(str(number))
    swap.swap_in(new, out)
    if number == 2:
        print("ready", flush=True)
"""


def fill(folder, content):
    folder.mkdir()
    for index in range(FILES):
        (folder / str(index)).write_text(content)
    return folder


def contents(folder):
    return {path.read_text() for path in folder.iterdir()}


@pytest.fixture(params=["exchange", "two moves"])
def way(request, monkeypatch):
    """Both ways to swap: one system call, and the fallback of two renames."""
    if request.param == "two moves":
        monkeypatch.setattr(swap, "_exchange", lambda new, out: False)
    return request.param


def test_the_new_folder_replaces_the_old_one_and_nothing_else_is_left(tmp_path, way):
    out = fill(tmp_path / "out", "old")
    swap_in(fill(building_path(out), "new"), out)
    assert contents(out) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_linux_exchanges_the_folders_in_one_step(tmp_path):
    if sys.platform != "linux":
        pytest.skip("renameat2 is Linux's")
    first, second = fill(tmp_path / "a", "1"), fill(tmp_path / "b", "2")
    assert swap._exchange(first, second)
    assert (contents(first), contents(second)) == ({"2"}, {"1"})


def test_a_kill_between_the_two_moves_is_repaired(tmp_path):
    out = tmp_path / "out"
    fill(former_path(out), "old")
    fill(building_path(out), "new")
    recover(out)
    assert contents(out) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_after_the_swap_leaves_the_new_folder_and_leftovers_are_removed(tmp_path):
    out = fill(tmp_path / "out", "new")
    fill(former_path(out), "old")
    recover(out)
    assert contents(out) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_at_any_moment_leaves_one_complete_folder(tmp_path, way):
    out = tmp_path / "out"
    rng = random.Random(0)
    for _ in range(KILLS // 2):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS_SWAPS, str(out), way], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if way == "two moves":
            recover(out)
        assert len(list(out.iterdir())) == FILES
        assert len(contents(out)) == 1

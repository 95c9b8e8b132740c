"""A workspace whose limits change ten times in a row: nothing is trained twice, and every answer is the right one."""

import json
import sqlite3

import pytest
from building import TASK, choice_of, edgeopt, write_target

pytestmark = pytest.mark.slow

BYTES_BAND = 1.05
"""Among files within 5 % of the smallest one's bytes the quickest wins."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    write_target(folder / "tiny.toml")
    done = edgeopt(folder, "build", TASK, "--target", "tiny.toml")
    assert done.returncode == 0, done.stderr
    return folder


def count_trainings(folder):
    with sqlite3.connect(folder / ".edgeopt" / "ledger.sqlite") as ledger:
        ((count,),) = ledger.execute("select count(*) from parts where kind = 'network'").fetchall()
    ledger.close()
    return count


def upper_ends(trial):
    """Return what limits are compared with, read from choice.json alone."""
    interval = trial["score_drop_ci95"]
    return {
        "--latency-ms": trial["latency_ms"]["limit_ci95"][1],
        "--memory-mb": trial["peak_memory_bytes"] / 1e6,
        "--size-mb": trial["size_bytes"] / 1e6,
        "--max-drop": trial["score_drop"] if interval is None else interval[1],
    }


def keeping(choice, limits):
    """Return the measured trials that keep all limits and are worth shipping."""
    measured = [trial for trial in choice["trials"] if trial["status"] == "measured" and trial["pays"]]
    return [
        trial for trial in measured if all(upper_ends(trial)[name] <= float(value) for name, value in limits.items())
    ]


def between(values, share):
    """Return a limit between two neighbouring values, so that rounding decides nothing."""
    ordered = sorted(set(values))
    place = min(len(ordered) - 2, int(share * (len(ordered) - 1)))
    return f"{(ordered[place] + ordered[place + 1]) / 2:.6g}"


def test_ten_changes_of_limits_are_answered_right_and_train_nothing_twice(folder):
    start = [trial for trial in choice_of(folder)["trials"] if trial["status"] == "measured"]
    values = {name: [upper_ends(trial)[name] for trial in start] for name in upper_ends(start[0])}
    changes = [{name: between(found, share)} for name, found in values.items() for share in (0.3, 0.7)]
    changes += [{"--size-mb": between(values["--size-mb"], 0.5), "--max-drop": "0.9"}, {"--size-mb": "0.000001"}]
    assert len(changes) == 10
    for limits in changes:
        trained = count_trainings(folder)
        options = [part for limit in limits.items() for part in limit]
        done = edgeopt(folder, "build", TASK, "--target", "tiny.toml", "--json", *options)
        assert done.returncode in (0, 3), done.stderr
        choice = json.loads(done.stdout)
        found = keeping(choice, {"--max-drop": 0.2, **limits})
        assert (choice["winner"] is None) == (not found), (limits, choice["binding"])
        assert done.returncode == (0 if found else 3)
        if found:
            smallest = min(trial["size_bytes"] for trial in found)
            assert choice["winner"]["size_bytes"] <= BYTES_BAND * smallest, limits
            assert choice["winner"]["number"] in [trial["number"] for trial in found]
        if "train:" in done.stderr:
            assert count_trainings(folder) > trained, (limits, "a network was trained twice")
    trained = count_trainings(folder)
    again = edgeopt(folder, "build", TASK, "--target", "tiny.toml", *options, "--no-train")
    assert again.returncode == 3
    assert "train:" not in again.stderr
    assert count_trainings(folder) == trained

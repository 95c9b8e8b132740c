"""A build whose trainings run on a real Ray cluster ends with the same trials and the same winner as one here."""

import json
import os

import pytest
from building import TASK, TESTS, edgeopt, write_target
from ray_clusters import a_cluster, needs_ray

EXACT = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import msgspec, tiny_task
def task():
    task = tiny_task.task()
    task.training = msgspec.structs.replace(task.training, precision="float32")
    return task
"""
"""Without it, a short trial decides, by measured times, whether processors multiply in bfloat16."""
SAME = ("recipe", "status", "sha256", "size_bytes", "score")


def build(folder, timings, mode, *options):
    """Build in a folder of its own, with timings recorded or replayed, and return what is printed on stdout."""
    folder.mkdir()
    write_target(folder / "tiny.toml")
    (folder / "exact.py").write_text(EXACT)
    path = os.pathsep.join([str(TESTS.parent / "tools" / "replay"), str(TESTS.parent), str(TESTS)])
    replay = {"PYTHONPATH": path, "EDGEOPT_REPLAY_FOLDER": str(timings), "EDGEOPT_REPLAY_MODE": mode}
    command = ("build", "exact.py:task", "--target", "tiny.toml", "--quick", "--workers", "2", "--json", *options)
    done = edgeopt(folder, *command, **replay)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@needs_ray
@pytest.mark.slow
def test_a_build_on_a_cluster_has_the_winner_of_a_build_here(tmp_path, monkeypatch):
    (tmp_path / "timings").mkdir()
    here, _ = build(tmp_path / "here", tmp_path / "timings", "record")
    with a_cluster(2, monkeypatch) as cluster:
        options = ("--ray", cluster.address, "--ray-cores", "1")
        there, progress = build(tmp_path / "there", tmp_path / "timings", "replay", *options)
    assert "of the cluster at" in progress
    assert there["winner"]["sha256"] == here["winner"]["sha256"]
    pairs = zip(here["trials"], there["trials"], strict=True)
    assert all(one.get(name) == other.get(name) for one, other in pairs for name in SAME)


def test_a_build_with_a_wrong_address_ends_before_any_work(tmp_path):
    write_target(tmp_path / "tiny.toml")
    done = edgeopt(tmp_path, "build", TASK, "--target", "tiny.toml", "--ray", "127.0.0.1:1", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--ray 127.0.0.1:1: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "baseline" not in done.stderr

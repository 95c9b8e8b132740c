"""User code that forks, in real processes: nothing waits for a lock, nothing stays behind, nothing changes a result."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import LONG_ENOUGH_SECONDS, wait_until

from edgeopt.pipeline.torch_process import protocol
from edgeopt.pipeline.torch_process.pool import TorchPool
from edgeopt.records.codec import from_json
from edgeopt.records.groups import GroupTable
from edgeopt.records.recipe import Importance

TESTS = Path(__file__).parents[1]
TASKS = TESTS / "forking_task.py"
ORIGINAL = protocol.NetworkRef(source="original", file=None)


def scored_by_gradients(name, folder):
    """Return the channels' importance, which takes a few batches of the training set, from a torch process."""
    out = folder / f"{name}.json"
    pool = TorchPool(f"{TASKS}:{name}", 1)
    try:
        pool.do(protocol.TableJob(network=ORIGINAL, importance=Importance(), out=str(out)), protocol.TableDone)
    finally:
        pool.close()
    return {group.name: group.importance for group in from_json(out.read_bytes(), GroupTable).free}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return scored_by_gradients("plain", tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", ["forked", "persistent", "spawned"])
def test_loaders_with_workers_give_what_one_without_gives(name, plain, tmp_path):
    assert scored_by_gradients(name, tmp_path) == plain


def test_a_pool_of_the_users_own_works_in_a_torch_process(tmp_path):
    assert scored_by_gradients("pooled", tmp_path)


def processes_of(session):
    """Return the ids of the processes in a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


IN_THE_PARENT = """
import sys, time
from edgeopt.pipeline.evaluation import open_task
batches = open_task({spec!r}, None).eval_batches()
print(len(next(batches)), flush=True)
time.sleep(600)
"""
IN_A_TORCH_PROCESS = """
import time
from edgeopt.pipeline.torch_process.pool import TorchPool
pool = TorchPool({spec!r}, 1)
with pool.worker() as worker:
    print(worker.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["forked", "pooled"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_loaders_of_a_killed_build_end_with_it(name, how):
    script = IN_THE_PARENT.format(spec=f"{TASKS}:{name}")
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert parent.stdout.readline() == "2\n"
        assert len(processes_of(parent.pid)) >= 3
        parent.send_signal(how)
        parent.wait(LONG_ENOUGH_SECONDS)
        wait_until(lambda: not processes_of(parent.pid), "a loader outlived the build")
    finally:
        parent.stdout.close()
        for pid in processes_of(parent.pid):
            os.kill(pid, signal.SIGKILL)


def test_a_torch_process_that_is_killed_takes_its_children_along(tmp_path):
    pool = TorchPool(f"{TASKS}:pooled", 1)
    try:
        job = protocol.TableJob(network=ORIGINAL, importance=Importance(), out=str(tmp_path / "table.json"))
        pool.do(job, protocol.TableDone)
        (worker,) = pool.processes
        assert len(processes_of(worker.process.pid)) >= 5
        worker.process.kill()
        wait_until(lambda: not processes_of(worker.process.pid), "a child outlived its torch process")
    finally:
        pool.close()


def test_the_end_of_its_parent_ends_a_torch_process_and_the_children_of_user_code():
    script = IN_A_TORCH_PROCESS.format(spec=f"{TASKS}:pooled")
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    session = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not processes_of(session), "a process outlived the build")

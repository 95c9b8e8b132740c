"""The debug log of worker processes: the command, each request and its answer, and how the worker ended."""

import logging
import re

import pytest

from edgeopt.device.base import WorkerRefused, WorkerRequest
from edgeopt.device.process import WorkerProcess
from edgeopt.errors import DeviceError

LOGGER = "edgeopt.device.process"
TIME = WorkerRequest(mode="time", model="folder/m.onnx")
ANSWER = """echo 'edgeopt-worker {"ok": true, "wall_ns": [1]}'"""
REFUSAL = """echo 'edgeopt-worker {"ok": false, "kind": "model", "reason": "m.onnx does not exist"}'"""


@pytest.fixture
def log(caplog):
    """Return a function that returns the lines so far, with ids and times replaced."""
    caplog.set_level(logging.DEBUG, LOGGER)

    def lines() -> list[str]:
        assert {record.name for record in caplog.records} <= {LOGGER}
        messages = (record.getMessage() for record in caplog.records)
        return [re.sub(r"worker \d+", "worker ID", re.sub(r"\d+\.\d{3} s", "T s", message)) for message in messages]

    return lines


def a_worker(script: str, **options) -> WorkerProcess:
    """Return a worker that is a shell script."""
    return WorkerProcess(["sh", "-c", script], {}, **options)


def test_the_log_tells_the_command_each_request_with_its_time_and_the_end_but_no_block_of_runs(log):
    with a_worker(f"read line; {ANSWER}; read line; {ANSWER}; read line; exit 0", log_as="a script") as worker:
        worker.ask(TIME, 60)
        worker.ask({"warmup_runs": 1, "min_runs": 1}, 60)
    assert log() == [
        "worker ID: started a script",
        "worker ID: asked for time m.onnx",
        "worker ID: answered time m.onnx after T s",
        "worker ID: ended after T s with exit code 0",
    ]


def test_the_command_is_logged_as_a_shell_would_take_it(log):
    with a_worker("read line; exit 0"):
        pass
    assert log()[0] == "worker ID: started sh -c 'read line; exit 0'"


def test_the_log_tells_a_refusal_with_its_reason(log):
    with pytest.raises(WorkerRefused), a_worker(f"read line; {REFUSAL}; read line", log_as="a script") as worker:
        worker.ask(TIME, 60)
    assert "worker ID: refused time m.onnx after T s: m.onnx does not exist" in log()


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("read line; exit 7", "exit code 7"),
        ("read line; kill -SEGV $$", "SIGSEGV"),
        ("read line; echo edgeopt-exit 137", "exit code 0, exit code 137 on the device"),
    ],
)
def test_the_log_tells_how_a_worker_without_an_answer_ended(log, script, how):
    with pytest.raises(DeviceError), a_worker(script, log_as="a script") as worker:
        worker.ask(TIME, 60)
    assert log()[-1] == f"worker ID: ended after T s with {how}"


def test_the_log_tells_that_a_worker_was_killed_after_its_timeout(log):
    with pytest.raises(DeviceError), a_worker("read line; exec sleep 600", log_as="a script") as worker:
        worker.ask(TIME, 0.2)
    assert log()[-2:] == ["worker ID: killing it after DeviceError", "worker ID: ended after T s with SIGKILL"]


def test_contents_of_files_are_not_logged(log):
    with a_worker(f"read line; {ANSWER}; read line", log_as="the file agent") as worker:
        worker.ask({"do": "write", "name": "folder/abc.onnx", "data": "c29tZSBjb250ZW50"}, 60)
    assert "worker ID: asked for write abc.onnx" in log()
    assert not [line for line in log() if "c29t" in line or "wall_ns" in line]


def test_nothing_is_printed_by_default(capfd):
    for name in ("process", "ssh", "ssh_connection", "adb", "adb_client", "browser", "browser_server"):
        assert logging.getLogger(f"edgeopt.device.{name}").handlers == []
    with a_worker(f"read line; {ANSWER}; read line") as worker:
        worker.ask(TIME, 60)
    assert capfd.readouterr() == ("", "")

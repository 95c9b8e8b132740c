"""Graph jobs run in processes of their own, which may crash, hang, be killed, or lose the builder."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from onnx_running import a_network, write
from waiting import wait_until

from edgeopt.errors import StepError, StoppedError
from edgeopt.graph import apply
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.jobs import processes
from edgeopt.graph.jobs.messages import ANSWER_FILE, JOB_FILE, PRINTED_FILE, GraphAnswer
from edgeopt.records.codec import from_json
from edgeopt.records.recipe import Simplify

LIMITS = {"calibration": None, "max_opset": 20, "max_ir": 9}
JOB = b'{"job":"step","step":{"step":"simplify"},"calibration":null,"source":"","target":""}'
HAS_PROC = Path("/proc/self/stat").is_file()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(a_network(), tmp_path_factory.mktemp("jobs") / "source.onnx")


@pytest.fixture(params=[True, False], ids=["forked", "new process"])
def forks(request, monkeypatch):
    """Run jobs in both ways."""
    if request.param and not processes.CAN_FORK:
        pytest.skip("this system does not fork")
    monkeypatch.setattr(processes, "CAN_FORK", request.param)
    return request.param


def write_other_worker(path, text):
    """Write a program that takes the place of the worker, or of the server: all jobs do what ``text`` says."""
    path.write_text(
        "import sys, time\n"
        "from edgeopt.graph.jobs import fork_server, worker\n"
        "def other(job):\n"
        f"    {text}\n"
        "worker._do = other\n"
        "if len(sys.argv) > 1:\n"
        "    worker.main()\n"
        "else:\n"
        "    fork_server._LIBRARIES = ()\n"
        "    fork_server.main()\n"
    )


@pytest.fixture
def program(forks, tmp_path, monkeypatch):
    """Return what lets jobs do something else."""

    def replace(text):
        write_other_worker(tmp_path / "other.py", text)
        real = subprocess.Popen
        monkeypatch.setattr(
            processes.subprocess,
            "Popen",
            lambda command, **options: real([sys.executable, str(tmp_path / "other.py"), *command[3:]], **options),
        )

    monkeypatch.setattr(processes, "_server", None)
    yield replace
    if processes._server is not None:
        processes._server.close()


def simplify(source, folder):
    return apply_steps((Simplify(),), source, folder / "out.onnx", **LIMITS)


def test_many_jobs_run_at_a_time(forks, source, tmp_path):
    def run(number):
        (tmp_path / str(number)).mkdir()
        return simplify(source, tmp_path / str(number))[0].path.is_file()

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(run, range(4)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "its process was ended by SIGSEGV. The build continues without it",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 1)", "its process was ended by signal 35"),
        ("raise RuntimeError('no such pass')", "its process failed: RuntimeError: no such pass"),
        ("import os; os._exit(0)", "its process gave no answer"),
    ],
)
def test_a_process_that_dies_is_an_error_of_its_step(program, source, tmp_path, text, reason):
    program(text)
    with pytest.raises(StepError, match=f"simplify: {reason}"):
        simplify(source, tmp_path)


def test_a_job_that_hangs_is_stopped(program, source, tmp_path, monkeypatch):
    program("time.sleep(600)")
    monkeypatch.setattr(apply, "_MAX_SECONDS", 0.05)
    with pytest.raises(StepError, match="simplify: did not end within 0 s"):
        simplify(source, tmp_path)


def test_a_job_that_is_stopped_is_no_failure_of_the_step(program, source, tmp_path):
    program("time.sleep(600)")
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(simplify, source, tmp_path)
        while not processes._running:
            time.sleep(0.01)
        processes.kill_graph_processes()
        with pytest.raises(StoppedError):
            step.result(timeout=60)


def test_the_debug_log_holds_the_job_its_duration_its_exit_code_and_what_it_printed(program, source, tmp_path, caplog):
    program("print('first line'); raise RuntimeError('last line')")
    caplog.set_level(logging.DEBUG, "edgeopt.graph.apply")
    with pytest.raises(StepError, match="simplify: its process failed: RuntimeError: last line"):
        simplify(source, tmp_path)
    sent, ended, *printed = caplog.messages
    assert sent == f"simplify: sending StepJob for {source}"
    assert re.fullmatch(r"simplify: exit code 1 after \d+\.\d\d s", ended)
    lines = [line.removeprefix("simplify: printed: ") for line in printed]
    assert "first line" in lines
    assert "RuntimeError: last line" in lines


def test_a_job_has_the_environment_of_the_builder_at_that_time(program, source, tmp_path, monkeypatch):
    program("import os; raise RuntimeError(os.environ['ASKED'])")
    for asked in ("first", "second"):
        monkeypatch.setenv("ASKED", asked)
        with pytest.raises(StepError, match=f"RuntimeError: {asked}"):
            simplify(source, tmp_path)


@pytest.mark.skipif(not processes.CAN_FORK, reason="this system does not fork")
def test_a_server_that_was_killed_fails_its_jobs_and_the_next_job_gets_another(program, tmp_path):
    program("time.sleep(600)")
    (tmp_path / JOB_FILE).write_bytes(JOB)
    first = processes._get_server()
    job = first.start(tmp_path)
    first.process.kill()
    assert job.wait(60) == -signal.SIGKILL
    assert first.start(tmp_path).wait(1) == -signal.SIGKILL
    first.close()
    assert processes._get_server() is not first


@pytest.mark.skipif(not processes.CAN_FORK, reason="this system does not fork")
def test_a_job_runs_in_a_new_process_if_the_server_cannot_start(source, tmp_path, monkeypatch):
    real = subprocess.Popen

    def start(command, **options):
        is_server = command[2].endswith("fork_server")
        return real([sys.executable, "-c", "raise SystemExit(1)"] if is_server else command, **options)

    monkeypatch.setattr(processes, "_server", None)
    monkeypatch.setattr(processes.subprocess, "Popen", start)
    assert simplify(source, tmp_path)[0].path.is_file()
    processes._server.close()


BUILDER = f"""
import sys, threading, time
from edgeopt.graph.jobs import processes
processes.CAN_FORK = sys.argv[2] == "True"
real = processes.subprocess.Popen
other = lambda command, **options: real([sys.executable, sys.argv[1], *command[3:]], **options)
processes.subprocess.Popen = other
threading.Thread(target=processes.run_job, args=({JOB!r}, 600), daemon=True).start()
while not processes._running:
    time.sleep(0.01)
(job,) = processes._running
while job.process is None:
    time.sleep(0.01)
print(getattr(job.process, "pid", job.process), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not HAS_PROC, reason="this system has no /proc")
def test_processes_end_with_the_builder(forks, tmp_path):
    write_other_worker(tmp_path / "other.py", "time.sleep(600)")
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "other.py"), str(forks)]
    builder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    status = Path(f"/proc/{int(builder.stdout.readline())}/stat")

    def is_gone():
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    assert not is_gone()
    builder.kill()
    builder.wait()
    builder.stdout.close()
    wait_until(is_gone, "the process outlived the builder")


def test_a_process_prints_into_its_folder_and_never_imports_torch(source, tmp_path):
    job = b'{"job":"step","step":{"step":"simplify"},"calibration":null,"source":"%s","target":"%s"}' % (
        str(source).encode(),
        str(tmp_path / "out.onnx").encode(),
    )
    (tmp_path / JOB_FILE).write_bytes(job)
    watched, kept_open = os.pipe()
    command = [sys.executable, "-X", "importtime", "-m", "edgeopt.graph.jobs.worker", str(tmp_path), str(watched)]
    done = subprocess.run(command, capture_output=True, check=True, pass_fds=(watched,))
    os.close(watched)
    os.close(kept_open)
    assert from_json((tmp_path / ANSWER_FILE).read_bytes(), GraphAnswer).reason is None
    assert done.stdout == b""
    assert b" torch._C\n" not in done.stderr + (tmp_path / PRINTED_FILE).read_bytes()

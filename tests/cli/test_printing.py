"""What user code prints never reaches stdout, where only the result belongs; and signals that stop a command."""

import shlex
import signal
import subprocess

import pytest
from test_frame import a_command, run

from edgeopt.cli.console import stdout_to_stderr

PRINTING = """
import atexit, ctypes, multiprocessing, os, subprocess, sys
from edgeopt.cli.console import stdout_to_stderr
with stdout_to_stderr():
    print("from Python")
    os.write(1, b"by its number\\n")
    ctypes.CDLL(None).puts(b"from C")
    subprocess.run(["echo", "from another program"])
    child = multiprocessing.get_context("fork").Process(target=lambda: print("from a child", flush=True))
    child.start()
    child.join()
    atexit.register(lambda: print("at exit"))
print("the result")
"""


def test_only_the_result_is_on_stdout_whoever_prints(tmp_path):
    done = run(a_command(tmp_path, f"exec({PRINTING!r})"))
    assert done.stdout == "the result\n"
    expected = {"from Python", "by its number", "from C", "from another program", "from a child", "at exit"}
    assert set(done.stderr.splitlines()) == expected


def test_a_stdout_that_is_no_file_is_redirected_too(capsys):
    with stdout_to_stderr():
        print("printed by user code")
    print("the result")
    assert capsys.readouterr() == ("the result\n", "printed by user code\n")


@pytest.mark.parametrize("closed", ["| head -1", ">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_error(tmp_path, closed):
    printing = "from rich.console import Console; [Console().print('a line ' * 9) for _ in range(3000)]"
    command = shlex.join(a_command(tmp_path, printing))
    script = f"set -o pipefail; {command} {closed}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_a_command_as_an_interrupt_does(tmp_path, number):
    command = a_command(tmp_path, "print('ready', flush=True); time.sleep(60)")
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # tests that run under nohup ignore the second signal, and so would the command
    with subprocess.Popen(command, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL), **options) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors.strip().startswith("stopped. Finished trials are kept")


def test_a_signal_that_the_process_was_told_to_ignore_stays_ignored(tmp_path):
    command = a_command(tmp_path, "os.kill(os.getpid(), 1); print('still here')")
    done = run(["nohup", *command])
    assert done.stdout == "still here\n"

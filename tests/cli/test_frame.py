"""The command line in real processes: help, exit codes, error messages, interrupts, pipes."""

import importlib
import os
import pty
import resource
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgeopt.cli import COMMANDS

MAX_HELP_SECONDS = 0.150
MAX_HELP_PER_CLICK = 1.6
"""Times the CPU time of a Python that only imports click: the limit of a machine on which that alone is slow."""

TRY_COUNT = 5


def edgeopt(*arguments, cwd=None, stdout=subprocess.PIPE):
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *arguments],
        cwd=cwd,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )


def a_command(folder: Path, body: str) -> list[str]:
    """Return the command line of an edgeopt whose ``build`` command has this body."""
    (folder / "stand_in_build.py").write_text(
        "import os, sys, time, click\nfrom edgeopt import errors\n@click.command(name='build')\ndef command():\n"
        f"    {body}\n"
    )
    code = "import edgeopt.cli as c; c.COMMANDS['build'] = ('stand_in_build', ''); c.main(['build'])"
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def cpu_seconds_of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_lists_every_command_and_is_fast():
    # CPU time: on a quiet machine it equals the wall time, as nothing is waited for, and other load does not change it.
    help_seconds, click_seconds = [], []
    for _ in range(TRY_COUNT):
        start = cpu_seconds_of_children()
        run([sys.executable, "-c", "import click"])
        middle = cpu_seconds_of_children()
        done = edgeopt("--help")
        click_seconds.append(middle - start)
        help_seconds.append(cpu_seconds_of_children() - middle)
        assert done.returncode == 0
    assert statistics.median(help_seconds) < max(
        MAX_HELP_SECONDS, MAX_HELP_PER_CLICK * statistics.median(click_seconds)
    )
    for name, (_, summary) in COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in done.stdout.splitlines()), name


@pytest.mark.parametrize(
    "arguments", [["build"], ["bench"], ["check"], ["inspect"], ["targets", "calibrate"]], ids=" ".join
)
def test_commands_that_run_models_take_verbose(arguments):
    assert "--verbose" in edgeopt(*arguments, "--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_listed_command_exists_and_has_its_name(name):
    command = importlib.import_module(COMMANDS[name][0]).command
    assert isinstance(command, click.Command)
    assert command.name == name


def test_every_command_module_is_listed():
    folder = Path(sys.modules["edgeopt.cli"].__file__).parent
    written = {f"edgeopt.cli.{path.stem}" for path in folder.glob("*.py") if "\ndef command(" in path.read_text()}
    assert written == {module for module, _ in COMMANDS.values()}


def test_without_a_command_help_goes_to_stdout():
    done = edgeopt()
    assert (done.returncode, done.stdout.startswith("Usage: edgeopt"), done.stderr) == (0, True, "")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["bild"], "error: there is no command 'bild'"),
        (["targts"], "error: there is no command 'targts' (did you mean 'targets'?).\nSee `edgeopt --help`."),
        (["--quik"], "error: No such option"),
        (["targets", "show"], "error: Missing argument 'NAME'.\nSee `edgeopt targets show --help`.\n"),
        (["targets", "show", "fone"], "error: there is no target 'fone' (did you mean 'phone'?)"),
    ],
)
def test_bad_input_is_one_message_on_stderr_and_exit_code_2(arguments, problem, tmp_path):
    done = edgeopt(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(problem)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise errors.BudgetMissedError('nothing keeps the limits')", 3, "error: nothing keeps the limits\n"),
        ("raise errors.StepError('export', 'no rule')", 1, "error: export: no rule\n"),
        ("raise errors.ProviderError('no CUDA')", 2, "error: no CUDA\n"),
        ("raise click.FileError('a.bin', 'gone')", 1, "error: Could not open file 'a.bin': gone\n"),
        ("return 3", 3, ""),
        ("return None", 0, ""),
        ("click.get_current_context().exit(3)", 3, ""),
    ],
)
def test_an_error_becomes_a_message_and_an_exit_code(tmp_path, body, code, message):
    done = run(a_command(tmp_path, body))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", message)


def test_an_unexpected_exception_keeps_its_traceback_and_is_called_a_bug(tmp_path):
    done = run(a_command(tmp_path, "{}['missing']"))
    assert done.returncode == 1
    assert "KeyError: 'missing'" in done.stderr
    assert "this is a bug in edgeopt" in done.stderr.splitlines()[-1]


def test_an_interrupt_reports_that_finished_work_is_kept_and_how_to_continue(tmp_path):
    command = a_command(tmp_path, "print('ready', flush=True); time.sleep(60)")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "stopped. Finished trials are kept: run the same command again to continue."


@pytest.mark.parametrize("body", ["print('x' * 10)", "print('x' * 1000000)", "click.echo('x' * 1000000)"])
def test_a_reader_that_is_gone_is_not_an_error(tmp_path, body):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        done = subprocess.run(a_command(tmp_path, body), stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_a_message_is_wrapped_to_the_terminal(tmp_path):
    command = a_command(tmp_path, "raise errors.InputError('word ' * 40)")
    ours, theirs = pty.openpty()
    subprocess.run(command, stderr=theirs, env={**os.environ, "COLUMNS": "50"})
    os.close(theirs)
    lines = os.read(ours, 10_000).decode().splitlines()
    os.close(ours)
    assert len(lines) > 1
    assert max(map(len, lines)) <= 50


def test_the_version_is_that_of_the_package():
    assert edgeopt("--version").stdout == f"edgeopt, version {sys.modules['edgeopt'].__version__}\n"

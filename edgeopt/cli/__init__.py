"""The command ``edgeopt``: imports each command only when it runs, and turns errors into messages.

In: ``sys.argv``. Out: reports on stdout, everything else on stderr, and the exit code of ``edgeopt.errors``.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import NoReturn

import click

import edgeopt
from edgeopt.cli.console import show_error
from edgeopt.errors import DeviceLostError, DiskFullError, EdgeoptError, did_you_mean, is_disk_full

COMMANDS = {
    "build": ("edgeopt.cli.build", "Make the smallest file that keeps a target's limits."),
    "bench": ("edgeopt.cli.bench", "Measure latency and memory of an ONNX file, or compare two."),
    "check": ("edgeopt.cli.check", "Verify a finished build: its files, its outputs, its limits."),
    "inspect": ("edgeopt.cli.inspect", "Show the contents of a model, or the removable channels of a task."),
    "report": ("edgeopt.cli.report", "Print the result of a finished build."),
    "history": ("edgeopt.cli.history", "List the builds and trials of a workspace."),
    "show": ("edgeopt.cli.show", "Show one trial of a workspace."),
    "stop": ("edgeopt.cli.stop", "End a running build with the best file so far."),
    "targets": ("edgeopt.cli.targets", "List, show, create and calibrate target profiles."),
    "init": ("edgeopt.cli.init", "Write an example task and an edgeopt.toml to start with."),
    "guide": ("edgeopt.cli.guide", "Print a guide: how to bring your own model and data."),
    "doctor": ("edgeopt.cli.doctor", "Check this machine: hardware, packages, devices, what is missing."),
}
"""Name to module and one line of help, in the order of ``--help``; each module calls its command ``command``."""

_STOPPING_SIGNALS = ("SIGTERM", "SIGHUP")
"""They stop a command as Ctrl-C does. One that this process was told to ignore stays ignored."""


class StoppedBySignal(KeyboardInterrupt):
    """One of the signals that stop a command came; the argument is its number."""


class LazyGroup(click.Group):
    """A group that imports the module of a command only when the command runs, so that ``--help`` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown command and suggest the nearest known one."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command '{args[0]}'{did_you_mean(args[0], COMMANDS)}.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(edgeopt.__version__, prog_name="edgeopt")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Turn a trained PyTorch model into the smallest ONNX file that keeps a target's limits.

    Exit codes: 0 done, 1 a step failed, 2 bad input, 3 nothing keeps the limits.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit.

    A command may return its exit code; None means 0.

    Args:
        arguments: The command line without the program's name; None for ``sys.argv``.
    """
    _open_closed_streams()
    sys.excepthook = _report_bug
    _stop_on_signals()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    code = _run(arguments)
    try:
        sys.stdout.flush()
        os.dup2(2, 1)  # the result is complete: what user code prints at exit is no part of it
    except BrokenPipeError:
        _close_stdout()
    sys.exit(code)


def _open_closed_streams() -> None:
    """Write to nowhere instead of a stream that the shell has closed (``>&-``)."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
            if nowhere != number:
                os.close(nowhere)


def _stop_on_signals() -> None:
    for name in _STOPPING_SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise StoppedBySignal(number)


def _run(arguments: Sequence[str]) -> int:
    """Run one command and turn the errors that edgeopt and click raise into a message and an exit code."""
    try:
        result = group.main(args=list(arguments), prog_name="edgeopt", standalone_mode=False)
    except BrokenPipeError:
        _close_stdout()
        return 0
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # for which rich ends the program with 1
            raise
        return 0
    except (EdgeoptError, OSError) as error:
        if is_disk_full(error) and not isinstance(error, DiskFullError):
            error = DiskFullError(error)
        if not isinstance(error, EdgeoptError):
            raise
        show_error(f"{error}{_kept_work(arguments) if isinstance(error, DeviceLostError) else ''}")
        return error.exit_code
    except click.UsageError as error:
        show_error(f"{error.format_message()}\n{_hint(error)}")
        return error.exit_code
    except click.ClickException as error:
        show_error(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        show_error(f"stopped.{_kept_work(arguments)}", label="")
        cause = error.__cause__  # click raises its own exception for an interrupt
        number = cause.args[0] if isinstance(cause, StoppedBySignal) else signal.SIGINT
        return 128 + int(number)  # as in shells
    return result if isinstance(result, int) else 0


def _kept_work(arguments: Sequence[str]) -> str:
    """Return a sentence about the work that an interrupted build keeps; empty for other commands."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    return " Finished trials are kept: run the same command again to continue." if command == "build" else ""


def _hint(error: click.UsageError) -> str:
    """Return a sentence about the help to read."""
    return f"See `{error.ctx.command_path if error.ctx else 'edgeopt'} --help`."


def _close_stdout() -> None:
    """Discard the output that is still to be written: the reader (``head``, a pager) is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected exception with its traceback."""
    import traceback  # 5 ms, which `edgeopt --help` must not pay

    traceback.print_exception(kind, error, trace)
    show_error("this is a bug in edgeopt, not in your input. Please report it with the lines above.", label="")

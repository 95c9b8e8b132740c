"""The command ``edgeopt``: a group that imports a command when it runs, and the one place where errors become words.

In: ``sys.argv``. Out: reports on stdout, everything else on stderr, and the exit code of ``edgeopt.errors``.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import NoReturn

import click

import edgeopt
from edgeopt.cli.console import show_error
from edgeopt.errors import DeviceLostError, DiskFullError, EdgeoptError, did_you_mean, is_disk_full

COMMANDS = {
    "build": ("edgeopt.cli.build", "Make the smallest file that keeps a target's limits."),
    "bench": ("edgeopt.cli.bench", "Time and weigh one ONNX file on a target, or compare two."),
    "check": ("edgeopt.cli.check", "Verify a finished build again: its files, its outputs, its limits."),
    "inspect": ("edgeopt.cli.inspect", "Show what a model holds, or what of a task can go."),
    "report": ("edgeopt.cli.report", "Print a finished build's result again."),
    "history": ("edgeopt.cli.history", "List the builds and trials of a workspace."),
    "show": ("edgeopt.cli.show", "Show one trial of a workspace."),
    "targets": ("edgeopt.cli.targets", "List, show and make target profiles."),
    "init": ("edgeopt.cli.init", "Write an example task and an edgeopt.toml to start from."),
    "doctor": ("edgeopt.cli.doctor", "Say what this machine has, and what is missing."),
}
"""Name to module and one line of help, in the order of ``--help``; each module has its command as ``command``."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""


class LazyGroup(click.Group):
    """A group whose commands are modules that are imported when they run, so that ``--help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
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
        """Refuse an unknown command with the nearest known one."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command '{args[0]}'{did_you_mean(args[0], COMMANDS)}.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(edgeopt.__version__, prog_name="edgeopt")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Make the smallest ONNX file of a trained PyTorch model that keeps a target's limits.

    Exit codes: 0 done, 1 a step failed, 2 bad input, 3 nothing keeps the limits.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit.

    A command may return its exit code; None is 0.

    Args:
        arguments: The command line without the program's name; None takes it from ``sys.argv``.
    """
    sys.excepthook = _report_bug
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    """Run one command and turn what it raises on purpose into a message and an exit code."""
    try:
        result = group.main(args=list(arguments), prog_name="edgeopt", standalone_mode=False)
    except BrokenPipeError:
        _close_stdout()
        return 0
    except (EdgeoptError, OSError) as error:
        full = is_disk_full(error) and not isinstance(error, DiskFullError)
        known = DiskFullError(error) if full else error
        if not isinstance(known, EdgeoptError):
            raise
        show_error(f"{known}{_kept(arguments) if isinstance(known, DeviceLostError) else ''}")
        return known.exit_code
    except click.UsageError as error:
        show_error(f"{error.format_message()}\n{_hint(error)}")
        return error.exit_code
    except click.ClickException as error:
        show_error(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        show_error(f"stopped.{_kept(arguments)}", label="")
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _kept(arguments: Sequence[str]) -> str:
    """Say what a build that was cut short leaves; nothing for another command."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    return " Finished trials are kept: run the same command again to go on from there." if command == "build" else ""


def _hint(error: click.UsageError) -> str:
    """Say which help to read."""
    return f"`{error.ctx.command_path if error.ctx else 'edgeopt'} --help` shows what it takes."


def _close_stdout() -> None:
    """Send what is still to be written to nowhere: the reader (``head``, a pager) has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what nobody raised on purpose, with its traceback."""
    traceback.print_exception(kind, error, trace)
    show_error("this is a bug in edgeopt, not in what you gave it. Please report it with the lines above.", label="")

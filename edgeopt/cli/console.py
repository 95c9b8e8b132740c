"""Output on stderr: error messages, and the progress of long commands. Only reports go to stdout."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edgeopt.logs import PROGRESS_LOGGER

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_logger = logging.getLogger(PROGRESS_LOGGER)

LINE_INTERVAL_SECONDS = 10.0
"""Shortest time between two lines of the same stage if stderr is not a terminal."""

_LASTING = ("note", "warning")
"""Stages whose lines stay on a terminal."""
_BEST = "best so far"
"""Not a stage, but what there is already: it stays at the end of the live line."""

_LEFT = "time left"
"""Not a stage either: two numbers, the seconds that the command still takes at least and may take."""

_REFRESHES_PER_SECOND = 2.0
"""Of the live line: few enough not to disturb a measurement on another core."""


def show_error(message: str, label: str = "error: ") -> None:
    """Print a message on stderr: wrapped on a terminal, as it is elsewhere so that it can be searched."""
    text = label + message
    if sys.stderr.isatty():
        import shutil  # with textwrap 8 ms, which `edgeopt --help` must not pay
        import textwrap

        width = max(40, shutil.get_terminal_size().columns)
        text = "\n".join(
            textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines()
        )
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what user code prints in a block to stderr: from Python, from C, and from child processes.

    Results are printed after the block, so that stdout holds nothing else.
    """
    import ctypes  # 6 ms, which `edgeopt --help` must not pay

    sys.stdout.flush()
    is_descriptor = sys.stdout is sys.__stdout__
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.nullcontext() if is_descriptor else contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)  # C keeps what it prints until its buffer is full
        os.dup2(kept, 1)
        os.close(kept)


class ProgressDisplay:
    """Show the progress of a long command; call it with a stage and a detail.

    On a terminal, one live line shows the stage, the detail and the seconds since the stage began. Elsewhere a stage
    prints a line when it begins, and then at most one every ten seconds. The debug log gets every call.

    Args:
        quiet: Print nothing.
        as_json: Print every call as a line of JSON, for another program.
        clock: Seconds.
    """

    def __init__(
        self, *, quiet: bool = False, as_json: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quiet = quiet
        self._as_json = as_json
        self._clock = clock
        self._began = clock()
        self._best = ""
        self._left_for = ""
        self._ends: tuple[float, float] | None = None
        """When the command is expected to end: at the earliest, and at the latest."""
        self._live: Live | None = None
        self._stage = ""
        self._detail = ""
        self._stage_began = 0.0
        self._line_printed = 0.0

    def __enter__(self) -> Self:
        if not self._quiet and not self._as_json and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                get_renderable=self._render,
                console=Console(stderr=True),
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, stage: str, detail: str = "") -> None:
        """Show that ``stage`` is at ``detail``."""
        now = self._clock()
        if self._as_json and not self._quiet:
            import json  # which `edgeopt --help` must not pay

            values: dict[str, object] = {"elapsed_s": round(now - self._began, 1), "stage": stage, "detail": detail}
            if stage == _LEFT:
                target, low, high = _read_left(detail)
                values |= {"detail": target + _in_minutes(low, high), "left_s": [low, high]}
            print(json.dumps(values), file=sys.stderr, flush=True)
        if stage == _BEST:
            self._show_best(detail)
            return
        if stage == _LEFT:
            target, low, high = _read_left(detail)
            self._ends = now + low, now + high
            self._left_for = f"for {target.removesuffix(': ')}" if target else "in all"
            _logger.debug(f"{stage}: {detail}")
            return
        new_stage = stage != self._stage
        if new_stage:
            self._stage_began = now
        if stage in _LASTING and self._live is not None:
            self._live.console.print(f"{stage}: {detail}", markup=False, highlight=False)
            return
        self._stage, self._detail = stage, detail
        line = f"{stage}: {detail}" if detail else stage
        _logger.debug(line)
        line += self._left
        is_due = new_stage or stage in _LASTING or now - self._line_printed >= LINE_INTERVAL_SECONDS
        if self._prints_lines and is_due:
            self._line_printed = now
            print(line, file=sys.stderr, flush=True)

    @property
    def _left(self) -> str:
        if self._ends is None:
            return ""
        low, high = (max(0, round(end - self._clock())) for end in self._ends)
        return f", {_in_minutes(low, high)} left {self._left_for}"

    @property
    def _prints_lines(self) -> bool:
        return self._live is None and not self._quiet and not self._as_json

    def _show_best(self, detail: str) -> None:
        """Show the best result so far, without ending the stage that it comes in."""
        self._best = detail
        _logger.debug(f"{_BEST}: {detail}")
        if self._prints_lines:
            print(f"{_BEST}: {detail}", file=sys.stderr, flush=True)

    def _render(self) -> Text:
        from rich.text import Text

        if not self._stage:
            return Text("")
        seconds = int(self._clock() - self._stage_began)
        passed = f"{seconds} s" if seconds < 60 else f"{seconds // 60} min {seconds % 60} s"
        passed += self._left
        best = f"  {_BEST}: {self._best}" if self._best else ""
        detail = f"  {self._detail}  " if self._detail else "  "
        line = Text.assemble((self._stage, "bold"), detail, (passed, "dim"), (best, "green"))
        line.no_wrap, line.overflow = True, "ellipsis"
        return line


def _read_left(detail: str) -> tuple[str, int, int]:
    """Return a range of seconds, such as ``100 290``, and the target that stands before it, as in ``car: 100 290``."""
    *target, low, high = detail.split(" ")
    return "".join(f"{word} " for word in target), int(low), int(high)


def _in_minutes(low: int, high: int) -> str:
    """Write a range of seconds, such as 100 to 290, as ``1 to 5 min``."""
    least, most = low // 60, -(-high // 60)
    return f"{least} to {most} min" if most - least > 1 else f"about {max(1, round((low + high) / 120))} min"

"""The debug log: records of the logger ``edgeopt`` and its children, on stderr or in a file.

Modules write with ``logging.getLogger(__name__).debug(...)``. Without one of these two functions nothing is printed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from pathlib import Path

PROGRESS_LOGGER = "edgeopt.progress"
"""Every step that a progress display was given. It goes to the file only: on stderr the display itself shows it."""

MAX_LOG_BYTES = 5_000_000
"""A log file that reaches this size becomes ``NAME.1``, in place of an older one, and a new file begins."""

_FILE_FORMAT = "%(asctime)s %(threadName)s %(name)s: %(message)s"
_STDERR_FORMAT = "%(asctime)s %(name)s: %(message)s"


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Write to the ``sys.stderr`` of the moment: a progress display on a terminal replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print debug records on stderr for the length of a block, above the progress display if there is one."""
    handler = _StderrHandler()
    handler.addFilter(lambda record: record.name != PROGRESS_LOGGER)
    handler.setFormatter(logging.Formatter(_STDERR_FORMAT, "%H:%M:%S"))
    with _attached(handler):
        yield


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append debug records to a file for the length of a block.

    A record that cannot be written is dropped: a full disk must not stop a build for the sake of its log.

    Args:
        path: The file, which is made if it is missing; its folder exists. Besides it, ``NAME.1`` holds older records.
    """
    from logging.handlers import RotatingFileHandler  # the import takes 20 ms

    handler = RotatingFileHandler(
        path, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace", delay=True
    )
    handler.handleError = _drop  # type: ignore[method-assign]
    handler.setFormatter(logging.Formatter(_FILE_FORMAT))
    with _attached(handler):
        yield


def _drop(record: logging.LogRecord) -> None:
    """Do nothing about a record that cannot be written; the default prints a traceback."""


@contextlib.contextmanager
def _attached(handler: logging.Handler) -> Iterator[None]:
    """Attach a handler to the logger ``edgeopt``, whose records then reach no other handler of the process."""
    logger = logging.getLogger("edgeopt")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        with contextlib.suppress(OSError):  # a full disk refuses the last buffer
            handler.close()

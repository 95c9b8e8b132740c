"""Waiting for what another process or thread does."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

LONG_ENOUGH_SECONDS = 60.0  # a busy machine may take a while to end a process

Found = TypeVar("Found")


def wait_until(find: Callable[[], Found], what: str) -> Found:
    """Return what ``find`` gives once that is true; fail with ``what`` if it does not become true."""
    deadline = time.monotonic() + LONG_ENOUGH_SECONDS
    while not (found := find()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def in_background(action: Callable[[], object]) -> Iterator[None]:
    """Run ``action`` in a thread during the block, and fail the test if it fails."""
    failures = []

    def run():
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert not failures, failures

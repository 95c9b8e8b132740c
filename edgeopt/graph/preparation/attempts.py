"""Calls other libraries' tools that raise errors of any kind, even ``Exception`` itself, if there is another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")


class Attempt(NamedTuple, Generic[Result]):
    """What came of a call."""

    result: Result | None
    reason: str | None
    """The first line of the error; None if there was none."""


def attempt(function: Callable[[], Result]) -> Attempt[Result]:
    """Call a function; an error of any kind becomes its first line.

    The caller has to go on in another way and to name the reason, or to raise it.
    """
    try:
        return Attempt(function(), None)
    except Exception as error:  # noqa: BLE001 - this is what the function is for
        return Attempt(None, str(error).strip().partition("\n")[0] or type(error).__name__)

"""Autocast in a model's own code, turned off while the model is traced.

A candidate gets its precision from edgeopt, which tries float16 and int8 itself, so a trace has the network as it
computes in the type of its parameters. A part under autocast would otherwise hold casts to the 16 bits that the machine
of its author was fast with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch.amp.autocast_mode import autocast

AUTOCAST_NOTE = (
    "forward() computes a part under autocast; the trace computes it in the type of its parameters, mostly float32. "
    "Which files are float16 or int8 is decided by edgeopt."
)
NEEDS_AUTOCAST = (
    "Models are traced with autocast off. If it runs with autocast on, leave half() and bfloat16() out of that part: "
    "autocast casts by itself."
)


@dataclass
class AutocastUse:
    """Whether a model turned autocast on while it ran."""

    is_used: bool = False


@contextmanager
def without_autocast() -> Iterator[AutocastUse]:
    """Keep autocast off, also where a model's code turns it on."""
    use = AutocastUse()
    enter: Any = autocast.__enter__

    def enter_disabled(self: Any) -> Any:
        enabled, self._enabled = self._enabled, False
        use.is_used |= bool(enabled)
        try:
            return enter(self)
        finally:
            self._enabled = enabled  # the model may keep it and use it again

    with mock.patch.object(autocast, "__enter__", enter_disabled), autocast("cpu", enabled=False):
        yield use

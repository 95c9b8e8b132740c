"""How long a search may still take: from what its rounds take, and how many may follow.

The low end is what is certain to come: the rest of this round, and the end of the build. The high end adds every round
and refinement that may follow, each as long as this one. Networks get smaller, and most builds leave some of these out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edgeopt.pipeline.context import Build

_STAGE = "time left"


class TimeLeft:
    """Watches the rounds of one search.

    Args:
        build: The build.
        clock: Seconds.
    """

    def __init__(self, build: Build, clock: Callable[[], float] = time.monotonic) -> None:
        self.build = build
        self.clock = clock
        self.to_follow = 0
        """Rounds and refinements that may follow this one."""
        self.file_seconds = 0.0
        """For making and measuring the files of a network."""
        self._began: float | None = None
        self._training: dict[str, float] = {}
        """When each training of this round is expected to end."""
        self._lock = threading.Lock()

    def begin_round(self) -> None:
        """Note that a round begins."""
        with self._lock:
            self._began, self._training = self.clock(), {}

    def end_round(self, *, is_first: bool) -> None:
        """Note that a round has ended; the first one trains nothing, and shows what files take."""
        assert self._began is not None
        seconds = self.clock() - self._began
        if is_first:
            self.file_seconds = seconds
        self._began = None

    def note_epoch(self, training: str, epoch: int, epochs: int) -> None:
        """Note that an epoch (from 0) of a training has ended, and show how long the search may still take."""
        with self._lock:
            if self._began is None:
                return
            now = self.clock()
            self._training[training] = now + (now - self._began) / (epoch + 1) * (epochs - 1 - epoch)
            rest = max(0.0, max(self._training.values()) - now) + self.file_seconds
            whole = now - self._began + rest
        self._show(rest + self._end_seconds, rest + self._end_seconds + self.to_follow * whole)

    @property
    def _end_seconds(self) -> float:
        """For comparisons, the test set and the bundle."""
        return self.build.clock.seconds.get("baseline", 0.0)

    def _show(self, low: float, high: float) -> None:
        limit = self.build.time_limit_seconds
        if limit is not None:
            rest = max(0.0, limit - self.build.clock.elapsed())  # trainings are cut off
            low, high = min(low, rest), min(high, rest)
        self.build.progress(_STAGE, f"{low:.0f} {high:.0f}")

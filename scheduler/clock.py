"""Where the loop's time comes from."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """`now_s` never goes backwards."""

    def now_s(self) -> float:
        """Seconds; Unix time when live."""


class SystemClock:
    """Unix time carried on by the monotonic clock, so that a clock that jumps moves no deadline."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        """Unix seconds as of this clock's start plus the monotonic time since."""
        return self._offset_s + time.monotonic()


class ManualClock:
    """Time that stands until it is moved."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        """The time it was last moved to."""
        return self._now_s

    def advance_to(self, now_s: float) -> None:
        """Move on. Raises ValueError if that would go backwards."""
        if now_s < self._now_s:
            raise ValueError(f"time cannot go from {self._now_s} back to {now_s}")
        self._now_s = now_s

"""Where a new worker's time goes between being asked for and its first step, by the controller's clock."""

from __future__ import annotations

import time
from collections.abc import Callable

_PARTS = (("process", "adopted"), ("imports", "imported"), ("model", "ready"), ("state", "switched"))
"""What ends with which event: the actor's process is there; its code; data, model and first values; others' state."""


class WarmUp:
    """One worker's. A part whose end was not heard counts to the next one."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._asked_s = now()
        self._ends_s: dict[str, float] = {}

    def hear(self, kind: str) -> None:
        """An event of the worker; only the first of its kind counts."""
        self._ends_s.setdefault(kind, self._now())

    def parts(self) -> dict[str, float]:
        """Seconds by part, of those that are over, in their order."""
        found: dict[str, float] = {}
        before_s = self._asked_s
        for part, end in _PARTS:
            if end in self._ends_s:
                found[part] = self._ends_s[end] - before_s
                before_s = self._ends_s[end]
        return found

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.2f} s" for part, seconds in self.parts().items())

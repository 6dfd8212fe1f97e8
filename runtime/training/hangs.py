"""Which workers hang: silent for so long that a busy machine does not explain it.

All workers of a job do the same work at the same time, so what slows a machine down, or holds Python's lock, delays
the beats of all, and those of the one that listens. A worker hangs if its silence stands out against everyone else's
and against its own past. Two that stop at the same moment hide each other: the pulse's own limit ends those.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

HANG_S = 1.5
"""Shorter silences are nobody's hang."""
STANDS_OUT = 3.0
"""So many times longer than any other recent silence."""
RECENT_S = 60.0
AWAY_S = 0.75
"""A listener that did not look for so long cannot tell who was silent meanwhile."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Seconds since a worker's last word, and its longest silence before that, of late."""

    now_s: float
    before_s: float


def hung(silences: Mapping[str, Silence]) -> list[str]:
    """Workers that hang; pure. Of one worker alone nothing can be said."""
    found = []
    for worker, silence in silences.items():
        others = [max(other.now_s, other.before_s) for name, other in silences.items() if name != worker]
        if others and silence.now_s > max(HANG_S, STANDS_OUT * max(silence.before_s, *others)):
            found.append(worker)
    return found


class Ear:
    """When a worker was last heard."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last_s = now()
        self._gaps: deque[tuple[float, float]] = deque()  # (when it ended, seconds), longer ones before shorter ones

    def hear(self) -> None:
        """It said something."""
        now_s = self._now()
        gap_s, self._last_s = now_s - self._last_s, now_s
        while self._gaps and self._gaps[-1][1] <= gap_s:
            self._gaps.pop()  # the new one is longer and will be recent for longer
        self._gaps.append((now_s, gap_s))

    def begin(self) -> None:
        """What was before does not count: it has only now begun to work like the others."""
        self._last_s = self._now()
        self._gaps.clear()

    def forgive(self) -> None:
        """The present silence does not count: nobody listened."""
        self._last_s = self._now()

    @property
    def silence(self) -> Silence:
        """See `Silence`."""
        now_s = self._now()
        while self._gaps and self._gaps[0][0] < now_s - RECENT_S:
            self._gaps.popleft()
        return Silence(now_s - self._last_s, self._gaps[0][1] if self._gaps else 0.0)


class HangWatch:
    """Looks at all ears of a job now and then."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._looked_s = now()

    def look(self, ears: Mapping[str, Ear], judged: Collection[str]) -> list[str]:
        """Those of `judged` that hang. After a time without looks everyone is given another chance."""
        now_s = self._now()
        was_away, self._looked_s = now_s - self._looked_s > AWAY_S, now_s
        if was_away:
            for ear in ears.values():
                ear.forgive()
            return []
        return hung({worker: ears[worker].silence for worker in judged})

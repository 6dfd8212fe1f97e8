"""What the agent itself costs its node."""

from __future__ import annotations

import os
import resource
from collections import deque

_PAGE = os.sysconf("SC_PAGE_SIZE")
_WINDOW_S = 60.0


class Footprint:
    """Resident memory and CPU time of the agent and its keeper; CPU over the last minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def sample(self, now_s: float, keeper: int = 0) -> tuple[float, float]:
        """(resident bytes, fraction of one core over the last minute or since the first sample)."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._samples.append((now_s, used.ru_utime + used.ru_stime))
        while len(self._samples) > 2 and self._samples[1][0] <= now_s - _WINDOW_S:
            self._samples.popleft()
        (first_s, first_cpu), (last_s, last_cpu) = self._samples[0], self._samples[-1]
        fraction = (last_cpu - first_cpu) / (last_s - first_s) if last_s > first_s else 0.0
        return _resident("self") + (_resident(str(keeper)) if keeper else 0.0), fraction


def _resident(pid: str) -> float:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return float(file.read().split()[1]) * _PAGE
    except OSError:
        return 0.0

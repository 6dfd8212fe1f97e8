"""Cores that other users keep busy, from the processor time of their processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

_TICKS = os.sysconf("SC_CLK_TCK")


class OtherUsers:
    """Processor time of processes of other users than `uid`, as a rate. `users` may narrow down which count.

    A process that begins and ends between two looks is not seen; the looks are half a second apart.
    """

    def __init__(self, uid: int, counts: Callable[[int], bool] = lambda uid: True) -> None:
        self.uid, self._counts = uid, counts
        self._last: tuple[float, Mapping[int, float]] | None = None

    def cores(self, now_s: float) -> float | None:
        """Cores kept busy since the last call, None at the first."""
        times = self._times()
        last, self._last = self._last, (now_s, times)
        if last is None or now_s <= last[0]:
            return None
        used_s = sum(max(0.0, spent_s - last[1].get(pid, 0.0)) for pid, spent_s in times.items())
        return used_s / (now_s - last[0])

    def _times(self) -> dict[int, float]:
        found = {}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                owner = os.stat(f"/proc/{name}").st_uid
                if owner == self.uid or not self._counts(owner):
                    continue
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            found[int(name)] = (int(fields[11]) + int(fields[12])) / _TICKS
        return found

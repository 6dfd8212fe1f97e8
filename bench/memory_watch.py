"""How much memory a cluster's processes hold while they work, and whether it grows.

Counted is a process's private memory: resident, less what it shares with files and other processes, such as a model
that is mapped and read now and then.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

ROLES = {"ray::GatewayActor": "gateway", "ray::EngineActor": "engines", "ray::ShardActor": "shards"}
EVERY_S = 2.0
WARM_UP_S = 60.0
"""Of a process's life: it loads, and its allocator learns what it needs."""
SHORTEST_S = 60.0
"""A process must have lived on for so long to say anything about growth."""


@dataclass(slots=True)
class History:
    """One process: when it was looked at, and the bytes that it held."""

    at_s: list[float] = field(default_factory=list)
    private_bytes: list[int] = field(default_factory=list)

    def warm(self) -> History:
        """Without its first minute."""
        first = next((n for n, at in enumerate(self.at_s) if at >= self.at_s[0] + WARM_UP_S), len(self.at_s))
        return History(self.at_s[first:], self.private_bytes[first:])

    @property
    def spans_s(self) -> float:
        """From the first look to the last."""
        return self.at_s[-1] - self.at_s[0] if self.at_s else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Slope of the line that fits best."""
        return statistics.linear_regression(self.at_s, self.private_bytes).slope


@dataclass(frozen=True, slots=True)
class Growth:
    """Of a role's processes that lived long enough: how many, what they held once warm and at their end, the slope."""

    processes: int
    warm_mb: float
    end_mb: float
    mb_per_minute: float


class MemoryWatch:
    """Looks at the processes that `pids` names until `stop`."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._histories: dict[tuple[str, int], History] = defaultdict(History)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, Growth]:
        """By role; medians over processes."""
        self._over.set()
        self._thread.join()
        by_role: dict[str, list[History]] = defaultdict(list)
        for (role, _), history in self._histories.items():
            if (warm := history.warm()).spans_s >= SHORTEST_S:
                by_role[role].append(warm)
        return {role: growth_of(histories) for role, histories in sorted(by_role.items())}

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            for pid in self._pids():
                try:
                    process = psutil.Process(pid)
                    role = next((r for name, r in ROLES.items() if process.cmdline()[0].startswith(name)), "")
                    private_bytes = private_bytes_of(process)
                except (psutil.Error, IndexError):
                    continue
                if role:
                    history = self._histories[role, pid]
                    history.at_s.append(time.monotonic())
                    history.private_bytes.append(private_bytes)


def private_bytes_of(process: psutil.Process) -> int:
    """Resident, less what is shared with files and other processes. Raises `psutil.Error` if it is gone."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def growth_of(histories: list[History]) -> Growth:
    """Medians over processes that are warm."""
    return Growth(
        len(histories),
        statistics.median(history.private_bytes[0] for history in histories) / 1e6,
        statistics.median(history.private_bytes[-1] for history in histories) / 1e6,
        statistics.median(history.bytes_per_s for history in histories) * 60 / 1e6,
    )

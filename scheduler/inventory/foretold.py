"""Is the forecast right? What it said of some leases now and then, against what became of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scheduler.domain.cluster import Lease, LeaseKey
from scheduler.planning.forecast import HORIZONS_S, Calibration

SAMPLE = 200
"""Leases that are asked about at a time, at most: more tell no more, and a large site has thousands."""


@dataclass(slots=True)
class _Sum:
    predicted: float = 0.0
    observed: int = 0
    asked: int = 0
    open: deque[tuple[float, dict[LeaseKey, float]]] = field(default_factory=deque)  # (due, chances)


@dataclass(slots=True)
class Foretold:
    """One site's. Leases that we gave back ourselves tell nothing, and are left out."""

    _sums: dict[float, _Sum] = field(default_factory=lambda: {horizon_s: _Sum() for horizon_s in HORIZONS_S})
    _ends: dict[LeaseKey, tuple[float, bool]] = field(default_factory=dict)  # of late: when, and whether by the owner

    def note_end(self, key: LeaseKey, at_s: float, *, by_owner: bool) -> None:
        """A lease ended."""
        self._ends[key] = at_s, by_owner

    def ask(self, chance: Callable[[Lease, float], float], live: Sequence[Lease], now_s: float) -> None:
        """Note the chances of some of the live leases to last so long; what is due by now is counted first."""
        self._count(now_s)
        some = sorted(live, key=lambda lease: lease.key.epoch)[:: max(1, -(-len(live) // SAMPLE))]
        for horizon_s, of in self._sums.items():
            of.open.append((now_s + horizon_s, {lease.key: chance(lease, horizon_s) for lease in some}))

    def calibration(self) -> tuple[Calibration, ...]:
        """By horizon; those of which nothing is known yet are left out."""
        return tuple(
            Calibration(horizon_s, of.predicted / of.asked, of.observed / of.asked, of.asked)
            for horizon_s, of in self._sums.items()
            if of.asked
        )

    def _count(self, now_s: float) -> None:
        for of in self._sums.values():
            while of.open and of.open[0][0] <= now_s:
                due_s, asked = of.open.popleft()
                for key, chance in asked.items():
                    self._count_one(of, key, chance, due_s)
        self._ends = {key: end for key, end in self._ends.items() if end[0] >= now_s - HORIZONS_S[-1]}

    def _count_one(self, of: _Sum, key: LeaseKey, chance: float, due_s: float) -> None:
        end_s, by_owner = self._ends.get(key, (float("inf"), True))
        if end_s <= due_s and not by_owner:
            return
        of.predicted += chance
        of.observed += end_s > due_s
        of.asked += 1

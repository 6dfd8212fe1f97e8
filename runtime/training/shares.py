"""Shares of the work by measured speed: how many grains a worker computes, and which experts it owns.

A step is as slow as its slowest worker, in its dense parts, where work goes by grains, and in each layer's experts.
Both are equal tasks on machines of unlike speed; giving each task to the machine that would end it soonest is optimal
then (Graham 1969, for tasks of one length). Everything here is pure and the same on every worker.
"""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from runtime.site.controller import ExpertId, WorkerSlot
from runtime.training.generation import with_experts

WINDOW = 8
"""Steps over which speeds are measured."""
GAIN = 1.1
"""Work is shared out anew if its slowest part gets faster by so much: measured speeds are never quite still."""
SLOW = 0.75
"""A worker below this share of the usual speed is a straggler."""
SEEN = 3
"""Windows whose middle one must show it, before experts move for it."""


def split(tasks: int, speeds: Sequence[float]) -> tuple[int, ...]:
    """Tasks of each worker, such that the last one ends as soon as can be. Speeds are > 0; ties go to the first."""
    counts = [0] * len(speeds)
    ends = [(1 / speed, worker) for worker, speed in enumerate(speeds)]  # if it got one more
    heapq.heapify(ends)
    for _ in range(tasks):
        _, worker = ends[0]
        counts[worker] += 1
        heapq.heapreplace(ends, ((counts[worker] + 1) / speeds[worker], worker))
    return tuple(counts)


def takes(counts: Sequence[int], speeds: Sequence[float]) -> float:
    """When the last worker ends."""
    return max(count / speed for count, speed in zip(counts, speeds, strict=True))


def reshare(counts: tuple[int, ...], speeds: Sequence[float]) -> tuple[int, ...]:
    """A better split of the same tasks, or the same one if little would be gained."""
    better = split(sum(counts), speeds)
    return better if takes(counts, speeds) >= GAIN * takes(better, speeds) else counts


def range_of(counts: Sequence[int], rank: int) -> range:
    """The tasks of a worker: consecutive, in rank order."""
    start = sum(counts[:rank])
    return range(start, start + counts[rank])


class Pace:
    """The workers' speeds, by rank, from what their steps took. 1.0 is the usual (median) speed."""

    def __init__(self, speeds: Sequence[float]) -> None:
        """Speeds to begin with."""
        self.speeds = tuple(speeds)
        self._seen: deque[tuple[tuple[float, ...], tuple[float, ...]]] = deque(maxlen=WINDOW)

    def add(self, work: Sequence[float], seconds: Sequence[float]) -> bool:
        """A step's work, in any unit, and time, by rank. True if speeds were measured anew, which ends a window."""
        self._seen.append((tuple(work), tuple(seconds)))
        if len(self._seen) < WINDOW:
            return False
        self.speeds = _usual_is_one([self._median(rank) for rank in range(len(self.speeds))], self.speeds)
        self._seen.clear()
        return True

    def _median(self, rank: int) -> float:
        rates = [work[rank] / took[rank] for work, took in self._seen if work[rank] > 0 and took[rank] > 0]
        return statistics.median(rates) if rates else 0.0


def _usual_is_one(rates: Sequence[float], before: Sequence[float]) -> tuple[float, ...]:
    """A worker that had nothing to do keeps the speed that it had."""
    known = [rate for rate in rates if rate > 0]
    usual = statistics.median_high(known) if known else 1.0
    return tuple(rate / usual if rate > 0 else old for rate, old in zip(rates, before, strict=True))


# --- experts ----------------------------------------------------------------------------------------------------


class Speeds:
    """Speeds by worker, as the job's controller hears of them."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    @property
    def usual(self) -> dict[str, float]:
        """Of the middle one of the last windows: a single one may have been disturbed."""
        return {worker: statistics.median_low(seen) for worker, seen in self._seen.items()}

    def hear(self, speeds: Mapping[str, float]) -> dict[str, float]:
        """The speeds of a window, of all workers that train together. Those who became stragglers by it, as below."""
        before = self.stragglers
        self._seen = {worker: self._seen.get(worker, deque(maxlen=SEEN)) for worker in speeds}
        for worker, speed in speeds.items():
            self._seen[worker].append(speed)
        return {worker: speed for worker, speed in self.stragglers.items() if worker not in before}

    @property
    def stragglers(self) -> dict[str, float]:
        """Workers whose speed in the middle one of the last windows was a straggler's, and that speed."""
        full = {worker: statistics.median(seen) for worker, seen in self._seen.items() if len(seen) == SEEN}
        return {worker: speed for worker, speed in full.items() if speed < SLOW}


def spare_stragglers(
    slots: Sequence[WorkerSlot], experts: Iterable[ExpertId], speeds: Mapping[str, float]
) -> tuple[WorkerSlot, ...]:
    """Move as many experts of each layer off stragglers as makes its slowest worker faster; nobody else loses any."""
    owned = {slot.worker: list(slot.experts) for slot in slots}
    if not speeds.keys() & owned.keys():
        return tuple(slots)
    for layer in sorted({layer for layer, _ in experts}):
        _spare(owned, layer, speeds)
    return tuple(with_experts(slot, sorted(owned[slot.worker])) for slot in slots)


def _spare(owned: Mapping[str, list[ExpertId]], layer: int, speeds: Mapping[str, float]) -> None:
    def ends(worker: str, more: int) -> tuple[float, str]:
        count = sum(key[0] == layer for key in owned[worker]) + more
        return count / speeds.get(worker, 1.0), worker

    slow: Collection[str] = speeds.keys() & owned.keys()
    while True:
        (worst_s, giver), (best_s, taker) = max(ends(w, 0) for w in slow), min(ends(w, 1) for w in owned)
        if worst_s <= best_s or giver == taker:
            return
        key = max(key for key in owned[giver] if key[0] == layer)
        owned[giver].remove(key)
        owned[taker].append(key)

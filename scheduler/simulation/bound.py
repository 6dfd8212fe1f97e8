"""The frictionless bound: the best total rate of the jobs on whatever is idle, rescales being free, over time.

No policy, with whatever knowledge of the future, gets more out of the idle nodes; `harvest` is useful / bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from scheduler.simulation.job_mix import MixJob
from scheduler.simulation.knapsack import best_values
from scheduler.simulation.traces import Trace

Values = NDArray[np.float64]
Presence = tuple[MixJob, float, float]
"""(job, from, to): while it could have run."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Node-seconds. `static_s` is the best on a pool that has the same node-time while the same jobs are present, and
    is of constant size all that while. No fluctuating pool is better (Jensen's inequality)."""

    useful_s: float
    static_s: float
    idle_s: float
    usable_s: float  # idle nodes, as far as the jobs present could use so many


def frictionless(trace: Trace, presences: Sequence[Presence], start_s: float, end_s: float) -> Bound:
    """The bound over [start_s, end_s)."""
    times, idle = idle_counts(trace, start_s, end_s)
    mean = float((idle[:-1] * np.diff(times)).sum() / max(end_s - start_s, 1e-9))
    curves: dict[tuple[str, ...], tuple[Values, Values]] = {}
    useful = static = usable = 0.0
    for from_s, to_s, jobs in _epochs(presences, start_s, end_s):
        key = tuple(job.id for job in jobs)
        if key not in curves:
            best = best_rates(jobs)
            curves[key] = best, concave(best)
        best, on_average = curves[key]
        spans, counts = _within(times, idle, from_s, to_s)
        usable_now = np.minimum(counts, len(best) - 1)
        useful += float((best[usable_now] * spans).sum())
        usable += float((usable_now * spans).sum())
        nodes = float((counts * spans).sum()) / (to_s - from_s)
        static += float(np.interp(nodes, np.arange(len(best)), on_average)) * (to_s - from_s)
    return Bound(useful, static, mean * (end_s - start_s), usable)


def best_rates(jobs: Sequence[MixJob]) -> Values:
    """The best total rate of jobs on at most n nodes, for n up to what all of them can use: exact."""
    rates = []
    for job in jobs:
        values = job.relative_rates()
        values[1 : job.min_width] = -np.inf
        rates.append(values)
    capacity = sum(job.max_width for job in jobs)
    best: Values = np.maximum.accumulate(best_values(rates, capacity)[-1])
    return best


def concave(best: Values) -> Values:
    """The least concave curve above `best`: where few nodes are no use, part of the time on each of two sizes."""
    hull: list[int] = []
    for n in range(len(best)):
        while len(hull) > 1 and _bends_up(best, hull[-2], hull[-1], n):
            hull.pop()
        hull.append(n)
    return np.interp(np.arange(len(best)), hull, best[hull])


def _bends_up(best: Values, first: int, middle: int, last: int) -> bool:
    return bool((best[middle] - best[first]) * (last - middle) <= (best[last] - best[middle]) * (middle - first))


def idle_counts(trace: Trace, start_s: float, end_s: float) -> tuple[Values, NDArray[np.int64]]:
    """Instants from `start_s` to `end_s`, and how many nodes are idle from each one on."""
    starts = np.array([i.start_s for i in trace.intervals])
    ends = np.array([i.end_s for i in trace.intervals])
    at = np.concatenate([[start_s, end_s], np.clip(starts, start_s, end_s), np.clip(ends, start_s, end_s)])
    change = np.concatenate([[0, 0], np.ones(len(starts), dtype=np.int64), -np.ones(len(ends), dtype=np.int64)])
    times, index = np.unique(at, return_inverse=True)
    steps = np.zeros(len(times), dtype=np.int64)
    np.add.at(steps, index, change)
    return times, np.cumsum(steps)


def _within(times: Values, counts: NDArray[np.int64], from_s: float, to_s: float) -> tuple[Values, NDArray[np.int64]]:
    """Spans of constant count between two instants."""
    first, last = np.searchsorted(times, from_s, side="right") - 1, np.searchsorted(times, to_s, side="left")
    edges = np.concatenate([[from_s], times[first + 1 : last], [to_s]])
    return np.diff(edges), counts[first:last]


def _epochs(
    presences: Sequence[Presence], start_s: float, end_s: float
) -> list[tuple[float, float, tuple[MixJob, ...]]]:
    """Spans over which the set of jobs does not change, with that set; those without a job are left out."""
    edges = sorted({start_s, end_s, *(p[1] for p in presences), *(min(p[2], end_s) for p in presences)})
    arriving = sorted(presences, key=lambda p: (p[1], p[0].id))
    present: list[Presence] = []
    epochs = []
    for from_s, to_s in pairwise(edges):
        present = [p for p in present if p[2] > from_s]
        while arriving and arriving[0][1] <= from_s:
            present.append(arriving.pop(0))
        present = [p for p in present if p[2] > from_s]
        if present:
            epochs.append((from_s, to_s, tuple(sorted((p[0] for p in present), key=lambda job: job.id))))
    return epochs

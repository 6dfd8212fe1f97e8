"""Who can be shared out over several pools: kinds of device, and sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.planning.allocation import Demand

Key = tuple[str, str]
"""(site, kind of device)"""

NEVER = 10.0
"""To stop a job that must run counts as the loss of so many times what all jobs could make."""

NOTHING = 1e-9
"""Gain, as a share of all, that is only rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A job: what it could have in each pool (what comes first is taken among equals), and what it is worth to stop.

    Invariant: `demands` is not empty; whether a job may stop is said here, not there.
    """

    demands: Mapping[Key, Demand]
    stopped: float
    must_run: bool = False

    @property
    def is_free(self) -> bool:
        """Whether there is a choice of pools."""
        return len(self.demands) > 1

    def demand(self, key: Key) -> Demand:
        """What it could have if it is in one pool."""
        demand = self.demands[key]
        return Demand(demand.first, demand.values, None if self.must_run else self.stopped)

    def worth(self, key: Key, width: int) -> float:
        """Of so many workers in a pool."""
        return float(self.demands[key].values[width - self.demands[key].first]) if width else self.stopped


@dataclass(frozen=True, slots=True)
class Pooling:
    """Each job's pool and width (0: it stops), what all of them together are worth, and at most could be."""

    pools: tuple[Key, ...]
    widths: tuple[int, ...]
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """How far from the optimum the value can be, at most; 0 where it is the optimum."""
        return self.bound - self.value


def all_may_stop(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same with a price on stopping those that must run, so high that it is paid only where they do not all fit."""
    most = sum(max(_size(demand) for demand in candidate.demands.values()) for candidate in candidates)
    never = -NEVER * (1.0 + most)
    return [replace(c, stopped=never, must_run=False) if c.must_run else c for c in candidates]


def _size(demand: Demand) -> float:
    return float(np.abs(demand.values).max(initial=0.0))


def components(candidates: Sequence[Candidate]) -> list[tuple[list[int], list[Key]]]:
    """Candidates (as indices) and the pools that they could be in, apart from all others; both sorted."""
    home: dict[Key, Key] = {}

    def root(key: Key) -> Key:
        while home.setdefault(key, key) != key:
            key = home[key]
        return key

    for candidate in candidates:
        first, *others = candidate.demands
        for key in (first, *others):
            home[root(key)] = root(first)
    parts: dict[Key, tuple[list[int], list[Key]]] = {}
    for key in sorted(home):
        parts.setdefault(root(key), ([], []))[1].append(key)
    for job, candidate in enumerate(candidates):
        parts[root(next(iter(candidate.demands)))][0].append(job)
    return list(parts.values())

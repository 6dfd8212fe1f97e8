# ruff: noqa: N815 - arrays carry their dimensions in fields too
"""What around an idle node changes how likely it is to be taken: its cohort, its neighbourhood, the hour of the day.

The hazard by age (see `forecast`) is multiplied by a factor for each of a lease's groups: the ends seen in the group
over those that were to be expected of its leases by their ages alone, drawn towards 1 where little was seen:

    factor = (ends + belief) / (expected + belief)

How strong that belief must be differs from machine to machine: ends come in bursts, so that a group in which nobody
was taken yet may say nothing. So for each feature it is learned which of `BELIEFS` would have foretold best what
became of some leases later (by the logarithm of the chance given to what happened). No effect at all is one of them,
and stands until something was proven better.

Source: the shared gamma frailty of D. G. Clayton, Biometrika 65 (1978), with its variance chosen by past forecasts.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from scheduler.domain.cluster import Lease, LeaseKey
from scheduler.domain.plan import Factors
from scheduler.planning.forecast import HORIZONS_S, Floats, Forecast
from scheduler.planning.hazard import Hazard, hazard_of

NONE = float("inf")
BELIEFS = (NONE, 1000.0, 300.0, 100.0, 30.0)
"""Expected ends that the belief in no effect may weigh."""

HALF_LIVES_S = {"cohort": 6 * 3600.0, "neighbourhood": 900.0, "hour": 5 * 86_400.0}
"""The features, and after what time what was seen counts half."""

NEIGHBOURS = 16
"""Nodes whose names differ only in a last number within one run of so many are neighbours."""

SAMPLE = 100
"""Leases on which the beliefs are judged at a time."""

ENOUGH = 2000
"""Forecasts that have come due before a feature has any effect."""

BETTER = 0.99
"""An effect must take so much off the surprise: single days prove little, for ends come in bursts."""

SCORES_HALF_LIFE_S = 10 * 86_400.0
FORGOTTEN = 1e-3
"""A group of which so few ends are expected is forgotten."""

HOUR_S, HOURS = 3600.0, 24


@lru_cache(maxsize=200_000)
def neighbourhood(node: str) -> str:
    """Where a node stands, by its name."""
    found = re.fullmatch(r"(.*?)(\d+)(\D*)", node)
    return f"{found[1]}{int(found[2]) // NEIGHBOURS}*{found[3]}" if found else node


def factor_of(lease: Lease, factors: Factors, for_s: float) -> float:
    """Of a lease on average over the time to come, whatever the hour."""
    factor = 1.0
    if factors.cohort:
        factor *= _faded(factors.cohort.get(lease.cohort, 1.0), "cohort", for_s)
    if factors.neighbourhood:
        factor *= _faded(factors.neighbourhood.get(neighbourhood(lease.key.node), 1.0), "neighbourhood", for_s)
    return factor


def _faded(factor: float, feature: str, for_s: float) -> float:
    """An effect of late fades in time to come as what was seen of it does."""
    return 1.0 + (factor - 1.0) * _remains(feature, for_s)


@lru_cache(maxsize=1000)
def _remains(feature: str, for_s: float) -> float:
    """The share of an effect on average over the time to come."""
    if feature == "hour" or for_s <= 0:
        return 1.0
    rate = math.log(2) / HALF_LIVES_S[feature]
    return -math.expm1(-rate * for_s) / (rate * for_s)


def factor_of_hours(factors: Factors, now_s: float, for_s: float) -> float:
    """Of the hours that are to come, on average."""
    if not factors.hour or for_s <= 0:
        return 1.0
    total = at_s = 0.0
    while at_s < for_s:
        span_s = min(for_s - at_s, HOUR_S - (now_s + at_s) % HOUR_S)
        total += span_s * factors.hour[_hour(now_s + at_s)]
        at_s += max(span_s, 1e-3)
    return total / at_s


@dataclass(slots=True)
class _Group:
    ends: float = 0.0
    expected: float = 0.0


class Surroundings:
    """One site's. Invariant: what is seen and expected of a group is never negative.

    `fixed`: beliefs that are not to be learned, for comparison.
    """

    def __init__(self, fixed: Mapping[str, float] = MappingProxyType({})) -> None:
        self._fixed = fixed
        self._groups: dict[str, dict[str, _Group]] = {feature: {} for feature in HALF_LIVES_S}
        self._judge = Judge()
        self._looked_s = float("-inf")

    def ended(self, lease: Lease, at_s: float, hazard: Hazard, *, by_owner: bool) -> None:
        """A lease ended. `hazard` by age, as for all that follows."""
        expected = self._expected(lease, at_s, hazard)
        for group in self._groups_with(lease, at_s):
            group.expected += expected
            group.ends += by_owner
        self._judge.ended(lease.key, at_s, by_owner=by_owner)

    def look(self, live: Sequence[Lease], forecast: Forecast, now_s: float) -> Factors:
        """Now and then: count what was to be expected of the live leases since the last look; what follows."""
        self._fade(now_s)
        hazard = hazard_of(forecast.hazard_per_s)
        for lease in live:
            expected = self._expected(lease, now_s, hazard)
            for group in self._groups_with(lease, now_s):
                group.expected += expected
        self._looked_s = now_s
        self._judge.count(now_s)
        some = sorted(live, key=lambda lease: lease.key.epoch)[:: max(1, -(-len(live) // SAMPLE))]
        self._judge.ask(some, [self._counts(lease, now_s) for lease in some], forecast, now_s)
        return self._factors()

    def beliefs(self) -> Mapping[str, float]:
        """How many expected ends the belief in no effect weighs, by feature; infinity: it has none."""
        return {of: self._fixed.get(of, self._judge.belief(row)) for row, of in enumerate(self._groups)}

    def _groups_with(self, lease: Lease, at_s: float) -> list[_Group]:
        """The lease's group of each feature."""
        groups = []
        for of_feature, name in zip(self._groups.values(), _groups_of(lease, at_s), strict=True):
            group = of_feature.get(name)
            if group is None:
                group = of_feature[name] = _Group()
            groups.append(group)
        return groups

    def _expected(self, lease: Lease, until_s: float, hazard: Hazard) -> float:
        """Ends of the lease by its age alone, since the last look."""
        since_s = max(lease.started_s, self._looked_s)
        return max(0.0, hazard.until(until_s - lease.started_s) - hazard.until(since_s - lease.started_s))

    def _fade(self, now_s: float) -> None:
        for feature, groups in self._groups.items():
            kept = 0.5 ** (max(0.0, now_s - self._looked_s) / HALF_LIVES_S[feature])
            for name, group in list(groups.items()):
                group.ends *= kept
                group.expected *= kept
                if group.ends + group.expected < FORGOTTEN:
                    del groups[name]

    def _counts(self, lease: Lease, now_s: float) -> list[tuple[float, float]]:
        names = zip(self._groups.values(), _groups_of(lease, now_s), strict=True)
        groups = (of_feature.get(name) for of_feature, name in names)
        return [(group.ends, group.expected) if group else (0.0, 0.0) for group in groups]

    def _factors(self) -> Factors:
        factors: dict[str, dict[str, float]] = {}
        for feature, belief in self.beliefs().items():
            seen = self._groups[feature].items() if belief < NONE else ()
            factors[feature] = {name: (of.ends + belief) / (of.expected + belief) for name, of in seen}
        hours = factors["hour"]
        by_hour = tuple(hours.get(str(hour), 1.0) for hour in range(HOURS)) if hours else ()
        return Factors(factors["cohort"], factors["neighbourhood"], by_hour)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Leases [N] at one time, what their ages let expect up to `due_s` [N], and what was known of their groups."""

    due_s: float
    keys: tuple[LeaseKey, ...]
    remains_F1: Floats
    hazard_N: Floats
    ends_FN: Floats
    expected_FN: Floats


class Judge:
    """Which belief would have foretold best what became of leases: F features, B beliefs, N leases."""

    def __init__(self) -> None:
        self._open: dict[float, deque[_Asked]] = {horizon_s: deque() for horizon_s in HORIZONS_S}
        self._ends: dict[LeaseKey, tuple[float, bool]] = {}  # of late
        self._surprise_FB: Floats = np.zeros((len(HALF_LIVES_S), len(BELIEFS)))
        self._asked = 0.0
        self._faded_s: float | None = None

    def ended(self, key: LeaseKey, at_s: float, *, by_owner: bool) -> None:
        """A lease ended."""
        self._ends[key] = at_s, by_owner

    def ask(
        self, leases: Sequence[Lease], counts: Sequence[Sequence[tuple[float, float]]], forecast: Forecast, now_s: float
    ) -> None:
        """Note what is known of some live leases; `counts`: (ends, expected) of the group of each, by feature."""
        if not leases:
            return
        ages_s = np.array([max(0.0, now_s - lease.started_s) for lease in leases])
        counts_NF2 = np.array(counts, dtype=np.float64)
        for horizon_s, asked in self._open.items():
            hazard_N = -np.log(np.maximum(forecast.survival(ages_s, horizon_s), 1e-300))
            keys = tuple(lease.key for lease in leases)
            remains_F1 = np.array([[_remains(feature, horizon_s)] for feature in HALF_LIVES_S])
            asked.append(
                _Asked(now_s + horizon_s, keys, remains_F1, hazard_N, counts_NF2[..., 0].T, counts_NF2[..., 1].T)
            )

    def count(self, now_s: float) -> None:
        """Judge by what is known by now."""
        kept = 1.0 if self._faded_s is None else 0.5 ** (max(0.0, now_s - self._faded_s) / SCORES_HALF_LIFE_S)
        self._surprise_FB *= kept
        self._asked *= kept
        self._faded_s = now_s
        for asked in self._open.values():
            while asked and asked[0].due_s <= now_s:
                self._judge(asked.popleft())
        self._ends = {key: end for key, end in self._ends.items() if end[0] >= now_s - HORIZONS_S[-1]}

    def belief(self, feature: int) -> float:
        """The one that foretold best."""
        if self._asked < ENOUGH:
            return NONE
        surprise_B = self._surprise_FB[feature]
        best = int(surprise_B.argmin())
        return BELIEFS[best] if surprise_B[best] < BETTER * surprise_B[0] else NONE

    def _judge(self, asked: _Asked) -> None:
        ends = [self._ends.get(key, (NONE, True)) for key in asked.keys]
        is_known_N = np.array([at_s > asked.due_s or by_owner for at_s, by_owner in ends])
        lasted_N = np.array([at_s > asked.due_s for at_s, _ in ends])
        for column, belief in enumerate(BELIEFS):
            over_FN = (asked.ends_FN - asked.expected_FN) / (asked.expected_FN + belief)
            factor_FN = 1.0 + asked.remains_F1 * over_FN  # see `_faded`
            chance_FN = np.clip(np.exp(-asked.hazard_N * factor_FN), 1e-3, 1 - 1e-3)
            said_FN = np.where(lasted_N, chance_FN, 1.0 - chance_FN)
            self._surprise_FB[:, column] -= np.where(is_known_N, np.log(said_FN), 0.0).sum(axis=1)
        self._asked += float(is_known_N.sum())


def _groups_of(lease: Lease, at_s: float) -> tuple[str, str, str]:
    """Its group of each feature, in the order of `HALF_LIVES_S`."""
    return lease.cohort, neighbourhood(lease.key.node), str(_hour(at_s))


def _hour(at_s: float) -> int:
    return int(at_s // HOUR_S) % HOURS

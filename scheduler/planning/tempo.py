"""How long a decision is likely to stand: the horizon over which changes of width are weighed.

A decision taken now is looked at again when the site's nodes next change, on average after `gap_s`; what it wins is
lost when its nodes go, on average after `life_s`. To grow at each change pays a stall each time; to wait for as long
as nodes live leaves them idle. As in the batch size of economic ordering, the balance is the geometric mean of the two.
The nodes are those that nobody works on yet. One that has been idle for long is likely to stay for longer than a new
one, and a better width on it is worth more. Those that were just given to somebody still count: planned for again at
once, they stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scheduler.planning.forecast import AGE_EDGES_S, Forecast
from scheduler.planning.view import Pool, PoolKey, Terms, View

PRIOR_GAP_S = 300.0
PRIOR_GAPS = 4.0
"""What is believed before anything was seen, and how many observed gaps that weighs."""

HALF_LIFE_S = 6 * 3600.0
"""After this time a gap counts half."""

LIFE_UP_TO_S = 3600.0
"""A node's life from now on is counted up to here."""

SHORTEST_S = 30.0

UNKNOWN_S = 300.0
"""For a site of which nothing is known."""


@dataclass(slots=True)
class Tempo:
    """How often a site's nodes change. Changes at one instant are one."""

    _gaps: float = PRIOR_GAPS
    _passed_s: float = PRIOR_GAPS * PRIOR_GAP_S
    _last_s: float | None = None

    def changed(self, at_s: float) -> None:
        """A node came or went."""
        if self._last_s is not None and at_s <= self._last_s:
            return
        if self._last_s is not None:
            kept = 0.5 ** ((at_s - self._last_s) / HALF_LIFE_S)
            self._gaps = self._gaps * kept + 1
            self._passed_s = self._passed_s * kept + at_s - self._last_s
        self._last_s = at_s

    @property
    def gap_s(self) -> float:
        """Mean time between changes."""
        return self._passed_s / self._gaps


def horizons(view: View) -> dict[PoolKey, float]:
    """Of each pool."""
    return {key: _of_pool(pool, view.terms) for key, pool in view.pools.items()}


def _of_pool(pool: Pool, terms: Terms) -> float:
    outlook = terms.outlooks.get(pool.key[0])
    if outlook is None:
        return UNKNOWN_S
    spots = (*pool.free.values(), *pool.starting.values())
    ages_s = [max(0.0, terms.now_s - spot.lease.started_s) for spot in spots]
    return horizon_s(outlook.gap_s, mean_life_s(outlook.hazard_per_s, ages_s))


def horizon_s(gap_s: float, life_s: float) -> float:
    """See the module."""
    return max(SHORTEST_S, math.sqrt(gap_s * life_s))


def mean_life_s(hazard_per_s: tuple[float, ...], ages_s: Sequence[float]) -> float:
    """How long leases of these ages last yet; a new one, if there are none. In any order the very same."""
    lives = _lives(hazard_per_s)
    return math.fsum(np.interp(ages_s, _AGES_S, lives)) / len(ages_s) if ages_s else float(lives[0])


_AGES_S = AGE_EDGES_S[:-1]


@lru_cache(maxsize=64)
def _lives(hazard_per_s: tuple[float, ...]) -> NDArray[np.float64]:
    """At each of `_AGES_S`; the same forecast is asked at every plan."""
    forecast = Forecast(hazard_per_s) if hazard_per_s else Forecast()
    return forecast.expected_use_s(_AGES_S, LIFE_UP_TO_S)

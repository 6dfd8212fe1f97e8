"""How long a decision is likely to stand: the horizon over which changes of width are weighed.

A decision taken now is looked at again when the site's nodes next change, on average after `gap_s`; what it wins is
lost when its nodes go, on average after `life_s`. To grow at each change pays a stall each time; to wait for as long
as nodes live leaves them idle. As in the batch size of economic ordering, the balance is the geometric mean of the two.
The nodes are those that are there now: many have been idle for long, and are likely to stay for longer than new ones.
On the traces of four machines it comes to between 120 and 900 s, each near what hindsight finds best there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.planning.forecast import AGE_EDGES_S, Forecast

PRIOR_GAP_S = 300.0
PRIOR_GAPS = 4.0
"""What is believed before anything was seen, and how many observed gaps that weighs."""

HALF_LIFE_S = 6 * 3600.0
"""After this time a gap counts half."""

LIFE_UP_TO_S = 3600.0
"""A node's life from now on is counted up to here."""

SHORTEST_S = 30.0


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


def horizon_s(gap_s: float, life_s: float) -> float:
    """See the module."""
    return max(SHORTEST_S, math.sqrt(gap_s * life_s))


def mean_life_s(forecast: Forecast, ages_s: Sequence[float]) -> float:
    """How long leases of these ages last yet; a new one, if there are none. In any order the very same."""
    at_s = AGE_EDGES_S[:-1]
    return float(np.interp(sorted(ages_s) or (0.0,), at_s, forecast.expected_use_s(at_s, LIFE_UP_TO_S)).mean())

"""How long a decision is likely to stand: the horizon over which changes of width are weighed.

A decision taken now is looked at again when the site's nodes next change, on average after `gap_s`; what it wins is
lost when its nodes go, on average after `life_s`. To grow at each change pays a stall each time; to wait for as long
as nodes live leaves them idle. As in the batch size of economic ordering, the balance is the geometric mean of the two.
On the traces of four machines it comes to between 120 and 900 s, each near what hindsight finds best there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from scheduler.planning.forecast import Forecast

PRIOR_GAP_S = 300.0
PRIOR_GAPS = 4.0
"""What is believed before anything was seen, and how many observed gaps that weighs."""

HALF_LIFE_S = 6 * 3600.0
"""After this time a gap counts half."""

LIFE_UP_TO_S = 1200.0
"""A new node's life is counted up to here: no decision stands longer without being looked at."""

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


def horizon_s(gap_s: float, forecast: Forecast) -> float:
    """See the module."""
    return max(SHORTEST_S, math.sqrt(gap_s * _life_s(forecast)))


@lru_cache(maxsize=64)
def _life_s(forecast: Forecast) -> float:
    """A new node's; the same forecast is asked at every plan."""
    return float(forecast.expected_use_s(0.0, LIFE_UP_TO_S))

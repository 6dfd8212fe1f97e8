"""How likely a lease is to last, by what its site's past says of its age, and by its known end if it has one."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from scheduler.domain.cluster import Lease
from scheduler.domain.plan import Outlook
from scheduler.planning.forecast import AGE_EDGES_S, PRIOR_HAZARD_PER_S

_EDGES_S: list[float] = AGE_EDGES_S.tolist()
_PRIOR = (PRIOR_HAZARD_PER_S,) * (len(_EDGES_S) - 1)


class Lasting:
    """The forecasts of all sites at one instant, for one lease at a time (see `forecast` for arrays)."""

    def __init__(self, now_s: float = 0.0, outlooks: Iterable[Outlook] = ()) -> None:
        self._now_s = now_s
        self._curves = {outlook.site: _cumulative(outlook.hazard_per_s or _PRIOR) for outlook in outlooks}
        self._unknown = _cumulative(_PRIOR)

    def chance(self, lease: Lease, for_s: float) -> float:
        """Chance that the lease is still there in `for_s`; less if it is known to end before."""
        hazard, total = self._curves.get(lease.site, self._unknown)
        age_s = max(0.0, self._now_s - lease.started_s)
        stays = math.exp(_at(age_s, hazard, total) - _at(age_s + for_s, hazard, total))
        if lease.expected_end_s is None:
            return stays
        return stays * min(1.0, max(0.0, lease.expected_end_s - self._now_s) / for_s)


def _cumulative(hazard: tuple[float, ...]) -> tuple[tuple[float, ...], list[float]]:
    spans = (rate * (end - start) for rate, start, end in zip(hazard, _EDGES_S, _EDGES_S[1:], strict=False))
    return hazard, [0.0, *accumulate(spans)]


def _at(age_s: float, hazard: tuple[float, ...], total: list[float]) -> float:
    index = min(bisect_right(_EDGES_S, age_s) - 1, len(hazard) - 1)
    return total[index] + hazard[index] * (age_s - _EDGES_S[index])

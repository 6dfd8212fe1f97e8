"""How likely a lease is to last: by what its site's past says of its age, its surroundings and the hour, and by its
known end if it has one."""

from __future__ import annotations

import math
from collections.abc import Iterable

from scheduler.domain.cluster import Lease
from scheduler.domain.plan import Factors, Outlook
from scheduler.planning.forecast import Forecast
from scheduler.planning.hazard import hazard_of
from scheduler.planning.surroundings import factor_of, factor_of_hours


class Lasting:
    """The forecasts of all sites at one instant, for one lease at a time."""

    def __init__(self, now_s: float = 0.0, outlooks: Iterable[Outlook] = ()) -> None:
        self._now_s = now_s
        self._sites = {of.site: (hazard_of(of.hazard_per_s or _PRIOR), of.factors) for of in outlooks}
        self._unknown = hazard_of(_PRIOR), Factors()
        self._of_hours: dict[tuple[str, float], float] = {}

    def chance(self, lease: Lease, for_s: float) -> float:
        """Chance that the lease is still there in `for_s`; less if it is known to end before."""
        _, factors = self._sites.get(lease.site, self._unknown)
        factor = factor_of(lease, factors, for_s) * self._of_hours_at(lease.site, factors, for_s)
        return self.chance_by_age(lease, for_s, factor)

    def chance_by_age(self, lease: Lease, for_s: float, factor: float = 1.0) -> float:
        """The same with one factor for all: nodes that became idle together are alike."""
        hazard, _ = self._sites.get(lease.site, self._unknown)
        age_s = max(0.0, self._now_s - lease.started_s)
        stays = math.exp(factor * (hazard.until(age_s) - hazard.until(age_s + for_s)))
        if lease.expected_end_s is None:
            return stays
        return stays * min(1.0, max(0.0, lease.expected_end_s - self._now_s) / for_s)

    def _of_hours_at(self, site: str, factors: Factors, for_s: float) -> float:
        if (site, for_s) not in self._of_hours:
            self._of_hours[site, for_s] = factor_of_hours(factors, self._now_s, for_s)
        return self._of_hours[site, for_s]


_PRIOR = Forecast().hazard_per_s

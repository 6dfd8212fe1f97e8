"""What the inventory learns of a site: how long its leases last, how often its nodes change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scheduler.domain.cluster import Lease, LeaseKey
from scheduler.domain.plan import Factors, Outlook
from scheduler.inventory.foretold import Foretold
from scheduler.planning.forecast import Forecast, IdleHistory
from scheduler.planning.hazard import Hazard, hazard_of
from scheduler.planning.lasting import Lasting
from scheduler.planning.surroundings import Surroundings
from scheduler.planning.tempo import Tempo

LEARN_EVERY_S = 600.0
"""The forecast is made anew this often: it changes slowly, and live leases have to be looked through for it."""

OURS = ("raylet_failed", "raylet_died", "drained", "expiry", "unknown")
"""Beginnings of causes that say nothing of what the owner would have done: the lease is censored."""


@dataclass(slots=True)
class SitePast:
    """One site's. Leases are told of when they open and end."""

    history: IdleHistory = field(default_factory=IdleHistory)
    tempo: Tempo = field(default_factory=Tempo)
    forecast: Forecast = field(default_factory=Forecast)
    surroundings: Surroundings = field(default_factory=Surroundings)
    factors: Factors = field(default_factory=Factors)
    foretold: Foretold = field(default_factory=Foretold)
    _hazard: Hazard = field(default_factory=lambda: hazard_of(Forecast().hazard_per_s))
    _learnt_s: float | None = None

    def opened(self, at_s: float) -> None:
        """A node came."""
        self.tempo.changed(at_s)

    def ended(self, lease: Lease, at_s: float, cause: str) -> None:
        """A node went."""
        self.tempo.changed(at_s)
        by_owner = not (lease.drain_cause or cause).startswith(OURS)
        self.history.lease_ended(max(0.0, at_s - lease.started_s), at_s, by_owner=by_owner)
        self.surroundings.ended(lease, at_s, self._hazard, by_owner=by_owner)
        self.foretold.note_end(lease.key, at_s, by_owner=by_owner)

    def restore(self, leases: Iterable[Lease]) -> None:
        """Leases from before the scheduler was started, ended or not: what was learnt of them is learnt again."""
        known = list(leases)
        ends = ((lease.ended_s, 1, lease) for lease in known if lease.ended_s is not None)
        starts = ((lease.started_s, 0, lease) for lease in known)
        live: dict[LeaseKey, Lease] = {}
        for at_s, has_ended, lease in sorted((*starts, *ends), key=lambda news: (*news[:2], news[2].key)):
            self._learn_up_to(at_s, lease.site, live)
            if has_ended:
                live.pop(lease.key, None)
                self.ended(lease, at_s, lease.end_cause)
            else:
                live[lease.key] = lease
                self.opened(at_s)

    def _learn_up_to(self, at_s: float, site: str, live: Mapping[LeaseKey, Lease]) -> None:
        """As a scheduler did that ran all the time; while no lease is live there is nothing to learn."""
        while self._learnt_s is not None and live and self._learnt_s + LEARN_EVERY_S < at_s:
            self._learn(site, self._learnt_s + LEARN_EVERY_S, live.values())
        if not live:
            self._learn(site, at_s, ())

    def outlook(self, site: str, now_s: float, live: Iterable[Lease]) -> Outlook:
        """What it says of the future; `live` are the site's leases that have not ended."""
        if self._learnt_s is None or now_s >= self._learnt_s + LEARN_EVERY_S:
            self._learn(site, now_s, live)
        return self._outlook(site)

    def _learn(self, site: str, now_s: float, live: Iterable[Lease]) -> None:
        leases = list(live)
        self.forecast = self.history.forecast(max(0.0, now_s - lease.started_s) for lease in leases)
        self._hazard = hazard_of(self.forecast.hazard_per_s)
        self.factors = self.surroundings.look(leases, self.forecast, now_s)
        self.foretold.ask(Lasting(now_s, [self._outlook(site)]).chance, leases, now_s)
        self._learnt_s = now_s

    def _outlook(self, site: str) -> Outlook:
        return Outlook(site, self.tempo.gap_s, self.forecast.hazard_per_s, self.factors)

"""What each width in each pool is worth to a job: its rates there, weighed by `worth`.

Sites differ in how long a decision is likely to stand. So that their pools can be compared, a width is worth so much a
second of that time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from scheduler.domain.jobs import Job
from scheduler.planning.allocation import Demand
from scheduler.planning.candidates import Candidate
from scheduler.planning.claims import Claim
from scheduler.planning.curves import Rates
from scheduler.planning.kinds import Speeds, rates_on, speeds_of
from scheduler.planning.view import PoolKey, View
from scheduler.planning.worth import (
    Position,
    Values,
    importance,
    noise_of,
    rate_in_time,
    regret,
    useful_rates,
    width_values,
)


def candidates_of(
    found: Sequence[Sequence[Claim]], must_run: Sequence[bool], view: View, horizons_s: Mapping[PoolKey, float]
) -> list[Candidate]:
    """Each job's claims on pools, the first its own among equals, as a candidate. `horizons_s`: see `tempo`."""
    kinds = sorted({kind for site, kind in view.pools if site in view.sites})
    speeds = speeds_of(standing.job for standing in view.standings) if len(kinds) > 1 else {}
    return [
        _candidate(claims, must, view, horizons_s, kinds, speeds) for claims, must in zip(found, must_run, strict=True)
    ]


def _candidate(
    claims: Sequence[Claim],
    must_run: bool,
    view: View,
    horizons_s: Mapping[PoolKey, float],
    kinds: Collection[str],
    speeds: Speeds,
) -> Candidate:
    rates = _rates(claims, kinds, speeds)
    values = _values(claims, rates, view, horizons_s)
    demands = {c.pool: Demand(c.floor_width, values[c.pool][c.floor_width : c.ceiling + 1]) for c in claims}
    return Candidate(demands, float(values[claims[0].pool][0]), must_run)


def _rates(claims: Sequence[Claim], kinds: Collection[str], speeds: Speeds) -> dict[str, Rates]:
    """On each kind that is claimed, at all widths that matter."""
    job = claims[0].standing.job
    usable = [kind for kind in kinds if _can_use(job, kind)]
    widest = max(job.width, *(claim.ceiling for claim in claims))
    return {kind: rates_on(job, kind, usable, widest, speeds) for kind in sorted({claim.pool[1] for claim in claims})}


def _can_use(job: Job, kind: str) -> bool:
    return not job.device_kinds or kind in job.device_kinds


def _values(
    claims: Sequence[Claim], rates: dict[str, Rates], view: View, horizons_s: Mapping[PoolKey, float]
) -> dict[PoolKey, Values]:
    """What every width is worth in each pool, a second. To leave the pool that it is in costs what it would regret."""
    terms, standing, job = view.terms, claims[0].standing, claims[0].standing.job
    weight = importance(job, terms.fairness.get(job.user, 1.0))
    at = Position(len(standing.staying), job.width, standing.stall_left_s(terms.now_s), noise_of(job))
    in_time = rate_in_time(job, rates[claims[0].pool[1]], terms.now_s)
    useful = {c.pool: useful_rates(job, rates[c.pool[1]], c.floor_width, terms.now_s, in_time) for c in claims}
    values: dict[PoolKey, Values] = {}
    for claim in claims:
        horizon_s = horizons_s[claim.pool]
        if claim.is_move:
            left = regret(useful[claims[0].pool], at, job.costs, horizon_s)
            worth = width_values(useful[claim.pool], Position(0, job.width), job.costs, horizon_s, weight)
            worth -= weight * left
        else:
            worth = width_values(useful[claim.pool], at, job.costs, horizon_s, weight)
        worth /= horizon_s
        values[claim.pool] = worth
    return values

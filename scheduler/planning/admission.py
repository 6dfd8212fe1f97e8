"""Which jobs run, in which pool, and how wide: who comes first gets its minimum, then the rest is shared out best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from scheduler.domain.jobs import Role
from scheduler.domain.plan import Withheld
from scheduler.domain.reasons import Reason
from scheduler.planning import why
from scheduler.planning.allocation import Allocation, Demand, allocate, width_values
from scheduler.planning.curves import relative_rates
from scheduler.planning.fit import least_bytes, least_workers
from scheduler.planning.view import Pool, PoolKey, Standing, View

HORIZON_S = 300.0
"""How long a change is assumed to last. Between 60 and 600 s the outcome on real traces hardly depends on it."""

WORTH_SHRINKING = 0.05
"""Least gain, as a share of all work, for which running jobs give up workers to each other: not for noise."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is to run in a pool, with at least `floor_width` and at most `ceiling` workers."""

    standing: Standing
    pool: PoolKey
    floors: Mapping[Role, int]  # fewest workers of each role with which the model fits
    ceiling: int
    width: int = 0  # what it gets

    @property
    def floor_width(self) -> int:
        """Fewest workers."""
        return sum(self.floors.values())


@dataclass(frozen=True, slots=True)
class Admission:
    """Claims in the order of precedence, and why all others wait."""

    claims: tuple[Claim, ...]
    waiting: Mapping[str, Reason]


def admit(view: View, withheld: tuple[Withheld, ...]) -> Admission:
    """Jobs at connected sites that get at least their minimum, with their widths."""
    left = {key: pool.capacity for key, pool in view.pools.items()}
    held = {entry.job: entry.reason for entry in withheld}
    claims: list[Claim] = []
    waiting: dict[str, Reason] = {}
    for standing in view.standings:
        claim = held.get(standing.job.id) or _claim(standing, view, left)
        if isinstance(claim, Reason):
            waiting[standing.job.id] = claim
        else:
            left[claim.pool] -= claim.floor_width
            claims.append(claim)
    return Admission(_with_widths(claims, view), waiting)


def _claim(standing: Standing, view: View, left: Mapping[PoolKey, int]) -> Claim | Reason:
    job = standing.job
    pools = [view.pools[standing.pool]] if standing.pool else _pools_for(standing, view)
    if not pools:
        return why.no_site(job, view)
    fitting = [c for c in (_fit(standing, pool) for pool in pools) if c]
    if not fitting:
        large = any(pool.capacity for pool in pools) and not any(pool.fitting(least_bytes(job)) for pool in pools)
        return why.too_large(job, pools) if large else _short(standing, pools, left)
    for claim in sorted(fitting, key=lambda c: (-left[c.pool], c.pool)):
        if claim.floor_width <= left[claim.pool]:
            return claim
    return _short(standing, pools, left)


def _pools_for(standing: Standing, view: View) -> list[Pool]:
    job = standing.job
    return [
        pool
        for (site, kind), pool in view.pools.items()
        if site in view.sites
        and (not job.device_kinds or kind in job.device_kinds)
        and (job.started_s is None or job.site in ("", site))
    ]


def _fit(standing: Standing, pool: Pool) -> Claim | None:
    """The claim on a pool, if the job's model fits on enough of its devices at some width."""
    job, needed = standing.job, least_bytes(standing.job)
    if standing.in_flight and not standing.is_forced:
        floors = {need.role: len(standing.staying_as(need.role)) for need in job.needs}
        return Claim(standing, pool.key, floors, sum(floors.values()))
    memories = [s.device.memory_bytes for s in (*pool.free, *pool.emptying, *pool.held)]
    large = [memory for memory in memories if memory >= needed]
    if not large:
        return None
    floors = {}
    for need in job.needs:
        floors[need.role] = least_workers(job, need, min(large)) or need.max
    ceiling = max(sum(floors.values()), min(job.max_width, len(large)))
    return Claim(standing, pool.key, floors, ceiling) if sum(floors.values()) <= len(large) else None


def _short(standing: Standing, pools: list[Pool], left: Mapping[PoolKey, int]) -> Reason:
    pool = max(pools, key=lambda p: (left[p.key], p.key))
    return why.no_capacity(standing.job, pool, standing.job.min_width, pool.capacity - left[pool.key])


# --- widths ----------------------------------------------------------------------------------------------------


def _with_widths(claims: list[Claim], view: View) -> tuple[Claim, ...]:
    widths: dict[str, int] = {}
    for key in sorted({claim.pool for claim in claims}):
        there = [claim for claim in claims if claim.pool == key]
        best = _share_out(there, view.pools[key].capacity)
        widths.update((claim.standing.job.id, n) for claim, n in zip(there, best.widths, strict=True))
    return tuple(replace(claim, width=widths[claim.standing.job.id]) for claim in claims)


def _share_out(claims: list[Claim], capacity: int) -> Allocation:
    """The best widths; running jobs shrink for each other only where that is worth it, or makes room for a job."""
    free = allocate([_demand(claim, claim.floor_width) for claim in claims], capacity)
    assert free is not None, "claims were admitted only while their minima fit"
    kept = [min(max(claim.floor_width, len(claim.standing.staying)), claim.ceiling) for claim in claims]
    steady = allocate([_demand(claim, first) for claim, first in zip(claims, kept, strict=True)], capacity)
    if steady is None or free.value > steady.value + WORTH_SHRINKING * abs(steady.value):
        return free
    return steady


def _demand(claim: Claim, first: int) -> Demand:
    job, kept = claim.standing.job, len(claim.standing.staying)
    rates = relative_rates(job.curve, max(claim.ceiling, job.width))
    values = job.weight * width_values(rates, kept, job.width, job.costs, HORIZON_S)
    return Demand(first, values[first : claim.ceiling + 1])

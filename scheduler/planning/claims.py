"""Where a job could run: the pools that have what it needs, and at what widths its model fits there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.domain.jobs import Role
from scheduler.domain.reasons import Reason
from scheduler.planning import why
from scheduler.planning.fit import least_bytes, least_workers
from scheduler.planning.view import Pool, PoolKey, Standing, View


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is to run in a pool, with at least `floor_width` and at most `ceiling` workers."""

    standing: Standing
    pool: PoolKey
    floors: Mapping[Role, int]  # fewest workers of each role with which the model fits
    ceiling: int
    width: int = 0  # what it gets
    home: Claim | None = None  # of a move: what it has where it is, until there is room for all of it elsewhere

    @property
    def floor_width(self) -> int:
        """Fewest workers."""
        return sum(self.floors.values())

    @property
    def is_move(self) -> bool:
        """Whether it is on another pool than the one that the job is in."""
        return self.standing.pool not in (None, self.pool)


def as_it_is(standing: Standing, pool: PoolKey) -> Claim:
    """The claim to go on with the workers that stay."""
    floors = {need.role: len(standing.staying_as(need.role)) for need in standing.job.needs}
    return Claim(standing, pool, floors, sum(floors.values()), sum(floors.values()))


def offers(standing: Standing, view: View, taken: Mapping[PoolKey, int]) -> list[Claim] | Reason:
    """The pools that it could be in: first the one that it is in, then those with most room."""
    job = standing.job
    pools = _pools_for(standing, view)
    if job.budget_device_s is not None and view.terms.spent.get(job.id, 0.0) >= job.budget_device_s:
        return why.budget_spent(job)
    if not pools:
        return why.no_site(job, view)
    fitting = [claim for claim in (_fit(standing, pool, view.terms.now_s) for pool in pools) if claim]
    if not fitting:
        large = any(pool.capacity for pool in pools) and not any(pool.fitting(least_bytes(job)) for pool in pools)
        pool = max(pools, key=lambda p: (p.capacity, p.key))
        others = [other for other in pools if other is not pool]
        return why.too_large(job, pools) if large else why.no_capacity(job, pool, job.min_width, 0, others)
    return sorted(fitting, key=lambda c: (c.is_move, taken[c.pool] - view.pools[c.pool].capacity, c.pool))


def _pools_for(standing: Standing, view: View) -> list[Pool]:
    """Pools of a kind that it can use, at its own site once it has begun. While it changes it stays where it is."""
    if standing.pool and standing.in_flight and not standing.is_forced:
        return [view.pools[standing.pool]]
    return [pool for pool in view.pools.values() if pool.key == standing.pool or _is_open(standing, pool.key, view)]


def _is_open(standing: Standing, pool: PoolKey, view: View) -> bool:
    (site, kind), job = pool, standing.job
    home = standing.pool[0] if standing.pool else job.site if job.started_s is not None else ""
    return site in view.sites and home in ("", site) and (not job.device_kinds or kind in job.device_kinds)


def _fit(standing: Standing, pool: Pool, now_s: float) -> Claim | None:
    """The claim on a pool, if the job's model fits on enough of its devices at some width."""
    job, needed = standing.job, least_bytes(standing.job)
    if standing.is_left_alone(now_s):
        return as_it_is(standing, pool.key)
    large = pool.fitting(needed)
    if not large:
        return None
    floors = {need.role: least_workers(job, need, pool.smallest_fitting(needed)) or need.max for need in job.needs}
    ceiling = max(sum(floors.values()), min(job.max_width, large))
    return Claim(standing, pool.key, floors, ceiling) if sum(floors.values()) <= large else None

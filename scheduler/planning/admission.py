"""Which jobs run, in which pool, and how wide.

1. Each job's claim: the pool that it is in or could best be in, and the widths at which its model fits there.
2. Who has its turn gets at least its floor, in the order of precedence.
3. Each pool is shared out so that the worth of all widths together is greatest; a width of 0 is one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scheduler.domain.jobs import Role
from scheduler.domain.plan import Withheld
from scheduler.domain.reasons import Reason
from scheduler.planning import why
from scheduler.planning.allocation import Demand, allocate
from scheduler.planning.curves import relative_rates
from scheduler.planning.fit import least_bytes, least_workers
from scheduler.planning.view import Pool, PoolKey, Standing, Terms, View
from scheduler.planning.worth import Position, has_its_turn, importance, useful_rates, width_values


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
    """Jobs at connected sites that get workers, with their widths."""
    held = {entry.job: entry.reason for entry in withheld}
    claims: list[Claim] = []
    waiting: dict[str, Reason] = {}
    taken: Counter[PoolKey] = Counter()
    for standing in view.standings:
        claim = held.get(standing.job.id) or _claim(standing, view, taken)
        if isinstance(claim, Reason):
            waiting[standing.job.id] = claim
        else:
            taken[claim.pool] += claim.floor_width
            claims.append(claim)
    shared: list[Claim] = []
    for key in sorted(taken):
        shared += _share_out([claim for claim in claims if claim.pool == key], view.pools[key], view.terms)
    waiting.update((c.standing.job.id, _outbid(c, view.pools[c.pool], shared)) for c in shared if not c.width)
    order = {claim.standing.job.id: number for number, claim in enumerate(claims)}
    running = sorted((c for c in shared if c.width), key=lambda c: order[c.standing.job.id])
    return Admission(tuple(running), waiting)


def _claim(standing: Standing, view: View, taken: Mapping[PoolKey, int]) -> Claim | Reason:
    """The claim on the pool with most room."""
    job = standing.job
    pools = [view.pools[standing.pool]] if standing.pool else _pools_for(standing, view)
    if job.budget_device_s is not None and view.terms.spent.get(job.id, 0.0) >= job.budget_device_s:
        return why.budget_spent(job)
    if not pools:
        return why.no_site(job, view)
    fitting = [c for c in (_fit(standing, pool, view.terms.now_s) for pool in pools) if c]
    if not fitting:
        large = any(pool.capacity for pool in pools) and not any(pool.fitting(least_bytes(job)) for pool in pools)
        pool = max(pools, key=lambda p: (p.capacity, p.key))
        return why.too_large(job, pools) if large else why.no_capacity(job, pool, job.min_width, 0)
    return min(fitting, key=lambda c: (taken[c.pool] - view.pools[c.pool].capacity, c.pool))


def _pools_for(standing: Standing, view: View) -> list[Pool]:
    job = standing.job
    return [
        pool
        for (site, kind), pool in view.pools.items()
        if site in view.sites
        and (not job.device_kinds or kind in job.device_kinds)
        and (job.started_s is None or job.site in ("", site))
    ]


def _fit(standing: Standing, pool: Pool, now_s: float) -> Claim | None:
    """The claim on a pool, if the job's model fits on enough of its devices at some width."""
    job, needed = standing.job, least_bytes(standing.job)
    if standing.is_left_alone(now_s):
        floors = {need.role: len(standing.staying_as(need.role)) for need in job.needs}
        return Claim(standing, pool.key, floors, sum(floors.values()))
    large = pool.fitting(needed)
    if not large:
        return None
    floors = {need.role: least_workers(job, need, pool.smallest_fitting(needed)) or need.max for need in job.needs}
    ceiling = max(sum(floors.values()), min(job.max_width, large))
    return Claim(standing, pool.key, floors, ceiling) if sum(floors.values()) <= large else None


# --- widths ----------------------------------------------------------------------------------------------------


def _share_out(claims: list[Claim], pool: Pool, terms: Terms) -> list[Claim]:
    """The claims of one pool, in the order of precedence, with their widths."""
    left, demands = pool.capacity, []
    for claim in claims:
        job = claim.standing.job
        must_run = claim.floor_width <= left and (has_its_turn(job) or claim.standing.is_left_alone(terms.now_s))
        left -= claim.floor_width if must_run else 0
        demands.append(_demand(claim, terms, must_run))
    best = allocate(demands, pool.capacity)
    assert best is not None, "whoever must run was let in only while there was room"
    return [replace(claim, width=width) for claim, width in zip(claims, best.widths, strict=True)]


def _demand(claim: Claim, terms: Terms, must_run: bool) -> Demand:
    standing, job = claim.standing, claim.standing.job
    rates = relative_rates(job.curve, max(claim.ceiling, job.width))
    useful = useful_rates(job, rates, claim.floor_width, terms.now_s)
    at = Position(len(standing.staying), job.width, standing.stall_left_s(terms.now_s))
    weight = importance(job, terms.fairness.get(job.user, 1.0))
    values = width_values(useful, at, job.costs, terms.horizon_s(claim.pool[0]), weight)
    first = claim.floor_width
    return Demand(first, values[first : claim.ceiling + 1], None if must_run else float(values[0]))


def _outbid(claim: Claim, pool: Pool, shared: list[Claim]) -> Reason:
    taken = sum(c.width for c in shared if c.pool == claim.pool)
    needed = claim.floor_width
    if needed > pool.capacity - taken:
        return why.no_capacity(claim.standing.job, pool, needed, taken)
    return why.not_worth_it(claim.standing.job, pool)

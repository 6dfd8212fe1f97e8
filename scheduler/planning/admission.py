"""Which jobs run, in which pool, and how wide.

1. Each job's offers: the pools that it is in or could be in, and the widths at which its model fits there.
2. Who has its turn gets at least its floor, in the order of precedence.
3. Pools are shared out so that the worth of all widths together is greatest; a width of 0 is one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scheduler.domain.plan import Withheld
from scheduler.domain.reasons import Reason
from scheduler.planning import why
from scheduler.planning.candidates import Candidate
from scheduler.planning.claims import Claim, as_it_is, offers
from scheduler.planning.demands import candidates_of
from scheduler.planning.pooling import choose_pools
from scheduler.planning.tempo import horizons
from scheduler.planning.view import PoolKey, View
from scheduler.planning.worth import has_its_turn

Offers = Sequence[Claim]
"""What one job could have: claims on several pools, the first its own among equals."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Claims in the order of precedence, and why all others wait."""

    claims: tuple[Claim, ...]
    waiting: Mapping[str, Reason]


def admit(view: View, withheld: tuple[Withheld, ...]) -> Admission:
    """Jobs at connected sites that get workers, with their widths."""
    held = {entry.job: entry.reason for entry in withheld}
    found: list[Offers] = []
    waiting: dict[str, Reason] = {}
    taken: Counter[PoolKey] = Counter()
    for standing in view.standings:
        of_job = held.get(standing.job.id) or why.asleep(standing.job) or offers(standing, view, taken)
        if isinstance(of_job, Reason):
            waiting[standing.job.id] = of_job
        else:
            taken[of_job[0].pool] += of_job[0].floor_width
            found.append(of_job)
    shared = _share_out(found, view)
    running = tuple(claim for claim in shared if claim.width)
    promised = Counter({pool: sum(c.width for c in running if c.pool == pool) for pool in taken})
    stopped = ((of_job, claim) for of_job, claim in zip(found, shared, strict=True) if not claim.width)
    waiting.update((claim.standing.job.id, _outbid(of_job, view, promised)) for of_job, claim in stopped)
    return Admission(running, waiting)


# --- widths ----------------------------------------------------------------------------------------------------


def _share_out(found: Sequence[Offers], view: View) -> list[Claim]:
    """One claim for each job, with its width."""
    horizons_s = horizons(view)
    reserved = _reserve(found, view, horizons_s)
    candidates = candidates_of(found, [key is not None for key in reserved], view, horizons_s)
    capacities = {key: pool.capacity for key, pool in view.pools.items()}
    best = choose_pools(candidates, capacities)
    if any(c.must_run and not width for c, width in zip(candidates, best.widths, strict=True)):
        pinned = [_pinned(c, key or of_job[0].pool) for c, key, of_job in zip(candidates, reserved, found, strict=True)]
        best = choose_pools(pinned, capacities)
    return [_chosen(*given) for given in zip(found, best.pools, best.widths, strict=True)]


def _reserve(found: Sequence[Offers], view: View, horizons_s: Mapping[PoolKey, float]) -> list[PoolKey | None]:
    """Where jobs that must run could do so all together, by turns; None for the others."""
    left = {key: pool.capacity for key, pool in view.pools.items()}
    reserved: list[PoolKey | None] = []
    for of_job in found:
        standing, horizon_s = of_job[0].standing, horizons_s[of_job[0].pool]
        must_run = has_its_turn(standing.job, horizon_s) or standing.is_left_alone(view.terms.now_s)
        room = [claim for claim in of_job if claim.floor_width <= left[claim.pool]] if must_run else []
        reserved.append(room[0].pool if room else None)
        if room:
            left[room[0].pool] -= room[0].floor_width
    return reserved


def _pinned(candidate: Candidate, key: PoolKey) -> Candidate:
    return replace(candidate, demands={key: candidate.demands[key]})


def _chosen(of_job: Offers, pool: PoolKey, width: int) -> Claim:
    claim = next(claim for claim in of_job if claim.pool == pool)
    home = _home(of_job) if claim.is_move and width else None
    return Claim(claim.standing, pool, claim.floors, claim.ceiling, width, home)


def _home(of_job: Offers) -> Claim | None:
    """What a job that is to move has where it is; None if it cannot stay there."""
    own, standing = of_job[0], of_job[0].standing
    if not standing.is_forced:
        return as_it_is(standing, own.pool)
    return None if own.is_move else replace(own, width=min(own.ceiling, max(own.floor_width, len(standing.staying))))


def _outbid(of_job: Offers, view: View, promised: Mapping[PoolKey, int]) -> Reason:
    """Why a job waits that could run in each of these pools if nobody else did."""
    job = of_job[0].standing.job
    spare = {c.pool: view.pools[c.pool].capacity - promised.get(c.pool, 0) - c.floor_width for c in of_job}
    best = max(of_job, key=lambda claim: spare[claim.pool])
    others = [view.pools[claim.pool] for claim in of_job if claim is not best]
    return why.no_capacity(job, view.pools[best.pool], best.floor_width, promised.get(best.pool, 0), others)

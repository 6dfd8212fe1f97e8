"""Visits to widths at which a training job was not measured yet: from wide to narrow, one job of a pool at a time.

Whoever scales worse than was believed at first is found out by being seen at several widths. A machine whose nodes come
and go shows most of them by itself; the rest is visited on purpose, each for as long as it takes to be measured: a
step down from the width that the job was given anyway, for which nobody else has to stop or shrink. Widths halve
from the widest on, and a measured point speaks for those within half such a step (between points rates are linear).

Nothing needs to be remembered: while the point is missing the same job is asked for the same width.

Source of the order: X. Zhou et al., "MalleTrain", arXiv 2404.15668.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from scheduler.domain.jobs import Job, JobKind
from scheduler.domain.plan import Withheld
from scheduler.planning.admission import Admission, admit
from scheduler.planning.claims import Claim
from scheduler.planning.view import PoolKey, View

SHARE = 0.01
"""A job is explored once all of its visits together cost no more than this share of the time that it has run."""

MEASURING_S = 5.0
"""How long a job stays at a width until its rate there is known."""

GIVEN_UP_S = 60.0
"""A width at which a job stayed for so long without a measurement counts as visited."""

HALF_STEP = 2**0.5


def admit_exploring(view: View, withheld: tuple[Withheld, ...]) -> Admission:
    """Who runs and how wide, now and then narrower to be measured: what the live planner does."""
    return explore(admit(view, withheld), view.terms.now_s)


def explore(admission: Admission, now_s: float) -> Admission:
    """The admission, with one job of each pool as narrow as the next width that it is to visit."""
    exploring: dict[PoolKey, str] = {}
    claims: list[Claim] = []
    for claim in admission.claims:
        target = None if claim.pool in exploring else _target(claim, now_s)
        if target is not None:
            exploring[claim.pool] = claim.standing.job.id
        claims.append(claim if target is None else replace(claim, width=target))
    return Admission(tuple(claims), admission.waiting)


def has_more_to_show(job: Job, now_s: float) -> bool:
    """Whether the job is to visit some width that is no wider than its own."""
    return job.kind is JobKind.TRAIN and job.deadline_s is None and _next_of(job, job.width, job.min_width, now_s) > 0


def _target(claim: Claim, now_s: float) -> int | None:
    """The width to visit: a step down for a job that is settled, or where the job is for that already."""
    job, standing = claim.standing.job, claim.standing
    if job.kind is not JobKind.TRAIN or job.deadline_s is not None or standing.is_forced or claim.is_move:
        return None
    target = _next_of(job, min(claim.width, job.width), claim.floor_width, now_s)
    is_settled = target == job.width or not standing.in_flight
    return target if target and is_settled else None


def _next_of(job: Job, most: int, floor: int, now_s: float) -> int:
    """The widest unvisited width from `floor` to `most`; 0 if there is none, or the time for it has not come."""
    if not job.curve or not _is_affordable(job, now_s):
        return 0
    unvisited = (width for width in _ladder(job, floor) if width <= most and not _is_known(job, width))
    return next((width for width in unvisited if not _was_in_vain(job, width, now_s)), 0)


def _is_affordable(job: Job, now_s: float) -> bool:
    """Whether it has run for long. What is judged does not depend on what is visited: a round is made in one go."""
    visits = sum(1 for _ in _ladder(job, job.min_width))
    cost_s = visits * (job.costs.down_s + MEASURING_S) + job.costs.up_s
    return job.started_s is not None and SHARE * (now_s - job.started_s) >= cost_s


def _is_known(job: Job, width: int) -> bool:
    """Whether a measured point speaks for it."""
    return any(width <= HALF_STEP * at and at <= HALF_STEP * width for at, _ in job.curve)


def _ladder(job: Job, floor: int) -> Iterator[int]:
    """From the widest down to the narrowest."""
    width = job.max_width
    while width > floor:
        yield width
        width //= 2
    yield floor


def _was_in_vain(job: Job, width: int, now_s: float) -> bool:
    """Whether it stayed there for long; it was not measured, or nobody would ask."""
    until_s = [*(record.at_s for record in job.rescales[1:]), now_s]
    stays = zip(job.rescales, until_s, strict=False)
    return any(record.width == width and left_s - record.at_s > GIVEN_UP_S for record, left_s in stays)

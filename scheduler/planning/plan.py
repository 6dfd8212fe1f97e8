"""Snapshot in, plan out. Reads no clock, no chance, no log: the same snapshot gives the same plan.

1. Look: which devices can be shared out, and which workers of each job stay, must leave or are dead. Who plans again
   and again (`Replanner`) reads only what is not as it was.
2. Admit: who comes first gets its minimum; the rest of each pool is shared out by dynamic programming.
3. Shape: keep who stays, choose places for new workers, share the experts out anew.
4. A step for each job whose set of workers changes, a release for each drained lease that is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from scheduler.domain.jobs import Assignment, WorkerSlot
from scheduler.domain.plan import Assign, Plan, Release, Snapshot, Unplaced, Withheld
from scheduler.domain.reasons import Reason
from scheduler.planning import why
from scheduler.planning.admission import Admission
from scheduler.planning.claims import Claim
from scheduler.planning.exploring import admit_exploring
from scheduler.planning.lasting import Lasting
from scheduler.planning.placement import Ground
from scheduler.planning.shaping import Shape, count_leavers, host_experts, move, shape
from scheduler.planning.stock import Stock
from scheduler.planning.survey import Survey, look
from scheduler.planning.view import PoolKey, Standing, View

Admit = Callable[[View, tuple[Withheld, ...]], Admission]
"""Decides who runs and how wide; where their workers go is not its business."""


Look = Callable[[Snapshot], View]
"""Reads a snapshot."""


def plan(snapshot: Snapshot, admit: Admit = admit_exploring, look: Look = look) -> Plan:
    """What to change, and why what does not run does not. Nothing to change, no steps."""
    view = look(snapshot)
    draft = _Draft()
    away = tuple(s for s in view.standings if s.pool and s.pool[0] not in view.sites)
    for standing in away:
        _survive(standing, view, draft)
    here = replace(view, standings=tuple(s for s in view.standings if s not in away)) if away else view
    admission = admit(here, snapshot.withheld)
    for standing in here.standings:
        if standing.job.id in admission.waiting:
            draft.wait(standing, admission.waiting[standing.job.id], _deadline_s(standing.leaving, view))
    _shape_all(admission.claims, here, draft)
    releases = (Release(lease.key, lease.drain_cause) for lease in view.drained)
    return Plan(snapshot.version, (*sorted(draft.steps, key=_precedence), *releases), _unplaced(draft, view))


class Replanner:
    """`plan`, by somebody who remembers what the last snapshot held: the same plans, sooner."""

    def __init__(self, admit: Admit = admit_exploring) -> None:
        self._admit = admit
        self._survey = Survey()

    def __call__(self, snapshot: Snapshot) -> Plan:
        """See `plan`."""
        return plan(snapshot, self._admit, self._survey.look)


@dataclass(slots=True)
class _Draft:
    """The plan as far as it is made."""

    steps: list[Assign] = field(default_factory=list)
    unplaced: dict[str, Reason] = field(default_factory=dict)

    def give(self, standing: Standing, slots: tuple[WorkerSlot, ...], deadline_s: float | None = None) -> None:
        """A step, if the job's workers are not these already."""
        job = standing.job
        now = job.assignment.workers if job.assignment else ()
        if {slot.worker for slot in slots} == {slot.worker for slot in now}:
            return
        assignment = Assignment(job.id, job.assignment_revision + 1, slots)
        self.steps.append(Assign(assignment, _cause(standing, slots), deadline_s))

    def wait(self, standing: Standing, reason: Reason, deadline_s: float | None) -> None:
        """The job does not run; if it did, it is parked."""
        self.unplaced[standing.job.id] = reason
        self.give(standing, (), deadline_s)


def _unplaced(draft: _Draft, view: View) -> tuple[Unplaced, ...]:
    jobs = {standing.job.id: standing.job for standing in view.standings}
    reasons = sorted(draft.unplaced.items())
    return tuple(Unplaced(job, why.with_stakes(reason, jobs[job], view.terms)) for job, reason in reasons)


def _precedence(step: Assign) -> tuple[bool, str]:
    """Steps that only free devices go first."""
    return step.cause not in ("reclaim", "loss", "shrink"), step.assignment.job


def _cause(standing: Standing, slots: tuple[WorkerSlot, ...]) -> str:
    kept = {slot.worker for slot in slots}
    if not standing.holds and not standing.lost:
        return "start"
    if standing.lost:
        return "loss"
    if any(slot.worker not in kept for slot in standing.leaving):
        return "reclaim"
    if slots and standing.staying and not any(slot.worker in kept for slot in standing.staying):
        return "move"
    width = standing.job.width
    return "grow" if len(slots) > width else "shrink" if len(slots) < width else "move"


def _survive(standing: Standing, view: View, draft: _Draft) -> None:
    """A job at a site that is away gets nothing new; what it lost is taken note of."""
    job = standing.job
    draft.unplaced[job.id] = why.below_max_away(job, len(standing.staying))
    if not standing.lost:
        return
    whole = all(len(standing.staying_as(need.role)) >= need.min for need in job.needs)
    draft.give(standing, host_experts(job, standing.staying, _ground(view)) if whole else ())


def _ground(view: View) -> Ground:
    return Ground(view.leases, Lasting(view.terms.now_s, view.terms.outlooks.values()), view.terms.expert_loads)


def _shape_all(claims: tuple[Claim, ...], view: View, draft: _Draft) -> None:
    ground = _ground(view)
    stocks = {key: Stock(pool.free, ground.lasting) for key, pool in view.pools.items()}
    expected = {key: pool.emptying for key, pool in view.pools.items()}
    for claim in claims:
        expected[claim.pool] += 0 if claim.is_move else count_leavers(claim)
    for claim in sorted(claims, key=lambda c: c.standing.order[1:]):
        _give(*_shape(claim, stocks, expected, ground), view, draft)


def _shape(
    claim: Claim, stocks: Mapping[PoolKey, Stock], expected: Mapping[PoolKey, int], ground: Ground
) -> tuple[Claim, Shape]:
    """The job's workers; where it is, if there is no room yet in the pool that it is to move to."""
    if claim.is_move:
        moved = move(claim, stocks[claim.pool], ground)
        if moved or not claim.home:
            return claim, moved or Shape(None)
        claim = claim.home
    return claim, shape(claim, stocks[claim.pool], expected[claim.pool], ground)


def _give(claim: Claim, shaped: Shape, view: View, draft: _Draft) -> None:
    standing, pool = claim.standing, view.pools[claim.pool]
    if shaped.slots is None:
        reason = why.not_free_yet(standing.job, pool, claim.floor_width)
        draft.wait(standing, reason, _deadline_s(standing.leaving, view))
        return
    draft.give(standing, shaped.slots, _deadline_s(standing.leaving, view))
    if len(shaped.slots) < standing.job.max_width:
        draft.unplaced[standing.job.id] = why.below_max(standing.job, pool, len(shaped.slots))


def _deadline_s(leaving: Iterable[WorkerSlot], view: View) -> float | None:
    deadlines = [view.leases[slot.lease].deadline_s for slot in leaving]
    return min((d for d in deadlines if d is not None), default=None)

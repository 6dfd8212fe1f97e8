"""Policies to compare with: other answers to "how wide", for the same loop and the same placement.

- `bftrainer` (arXiv 2106.12091): at every event, maximise `sum_j T_fwd * S_j(n_j) - cost_j * S_j(current)`, the cost
  being that of growing or of shrinking. A start from zero is free, nodes never migrate. Its mixed-integer program is
  solved exactly, by dynamic programming over counts (see `knapsack`). Each job's rates are in units of its own
  one-node rate, as the outcome is counted: with plain samples a second, which differ in size from model to model, it
  would maximise something else, and be a weaker peer wherever a mix has several models.
- `equal`: every job the same number of nodes.

Both decide when nodes or jobs come or go, as published, and keep to their decision until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.domain.cluster import LeaseState
from scheduler.domain.jobs import Job, Role
from scheduler.domain.plan import Plan, Snapshot, Withheld
from scheduler.planning import why
from scheduler.planning.admission import Admission
from scheduler.planning.claims import Claim
from scheduler.planning.plan import plan
from scheduler.planning.view import Pool, Standing, View
from scheduler.simulation.job_mix import MixJob
from scheduler.simulation.knapsack import best_widths

Share = Callable[[Sequence[Standing], int], Sequence[int]]
"""Widths of jobs that share a pool of so many nodes."""


@dataclass(slots=True)
class CountPolicy:
    """A planner that only decides counts. All nodes are of one pool, and all jobs are of trainers."""

    share: Share
    _decided_for: object = None
    _widths: dict[str, int] = field(default_factory=dict)

    def __call__(self, snapshot: Snapshot) -> Plan:
        """See `scheduler.planning.plan.plan`."""
        return plan(snapshot, self._admit)

    def _admit(self, view: View, withheld: tuple[Withheld, ...]) -> Admission:
        standings = sorted(view.standings, key=lambda s: s.job.id)
        pool = next(iter(view.pools.values()), None)
        if pool is None:
            return Admission((), {s.job.id: why.no_site(s.job, view) for s in standings})
        self._decide(standings, pool, view)
        running = [s for s in standings if self._widths[s.job.id]]
        claims = tuple(_claim(s, pool, self._widths[s.job.id]) for s in running)
        waiting = {s.job.id: why.no_capacity(s.job, pool, s.job.min_width, 0) for s in standings if s not in running}
        return Admission(claims, waiting)

    def _decide(self, standings: Sequence[Standing], pool: Pool, view: View) -> None:
        ready = {key for key, lease in view.leases.items() if lease.state is LeaseState.READY}  # in any order
        occasion = (ready, [s.job.id for s in standings])
        if occasion != self._decided_for:
            widths = self.share(standings, pool.capacity)
            self._widths = {s.job.id: width for s, width in zip(standings, widths, strict=True)}
            self._decided_for = occasion


def _claim(standing: Standing, pool: Pool, width: int) -> Claim:
    role = standing.job.needs[0].role
    floors: Mapping[Role, int] = {role: min(width, standing.job.min_width)}
    return Claim(standing, pool.key, floors, width, width)


def bftrainer(jobs: Mapping[str, MixJob], horizon_s: float) -> CountPolicy:
    """The published objective, `horizon_s` being its T_fwd. `jobs` by their ids, with the costs to reckon with."""
    curves = {job_id: job.relative_rates() for job_id, job in jobs.items()}

    def worth(job: Job, current: int) -> np.typing.NDArray[np.float64]:
        rates, costs = curves[job.id], jobs[job.id]
        values = horizon_s * rates
        values[current + 1 :] -= costs.rescale_up_s * rates[current]
        values[:current] -= costs.rescale_down_s * rates[current]
        values[1 : job.min_width] = -np.inf
        return values

    def share(standings: Sequence[Standing], nodes: int) -> Sequence[int]:
        most = sum(s.job.max_width for s in standings)
        return best_widths([worth(s.job, len(s.staying)) for s in standings], min(nodes, most))

    return CountPolicy(share)


def equal() -> CountPolicy:
    """The same number of nodes for each job, within its bounds; what is left over goes to the first."""
    return CountPolicy(_equal_shares)


def _equal_shares(standings: Sequence[Standing], nodes: int) -> Sequence[int]:
    jobs = [s.job for s in standings]
    while jobs:
        each, over = divmod(nodes, len(jobs))
        widths = {job.id: min(job.max_width, each + (i < over)) for i, job in enumerate(jobs)}
        starved = [job for job in jobs if widths[job.id] < job.min_width]
        if not starved:
            return [widths.get(s.job.id, 0) for s in standings]
        jobs.remove(starved[-1])
    return [0] * len(standings)

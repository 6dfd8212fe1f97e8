"""What the planner is held against is the published optimum: BFTrainer's program, written down as it was published and
solved by HiGHS, finds nothing better than `policies.bftrainer` decides.

Source of the program: Z. Liu et al., "BFTrainer", arXiv 2106.12091, with the corrected migration bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.domain.cluster import LeaseKey
from scheduler.domain.jobs import Assignment, Job, JobKind, JobState, Role, WorkerSlot
from scheduler.planning.view import Standing
from scheduler.simulation.job_mix import MixJob
from scheduler.simulation.policies import bftrainer


@dataclass(frozen=True)
class Event:
    """A moment at which nodes came or went: jobs, how many nodes each of them holds, and all that are idle."""

    jobs: tuple[MixJob, ...]
    current: tuple[int, ...]
    nodes: int
    horizon_s: float


def event_of(seed: int, count: int) -> Event:
    """Jobs with curves, gangs and costs of their own. Some have just lost nodes and hold less than their minimum."""
    rng = np.random.default_rng(seed)
    jobs = tuple(_job(rng, f"j{number}") for number in range(count))
    current = tuple(int(rng.integers(0, job.max_width + 1)) for job in jobs)
    return Event(jobs, current, sum(current) + int(rng.integers(0, 5)), float(rng.choice([60, 300, 600, 1800])))


def _job(rng: np.random.Generator, name: str) -> MixJob:
    widest = int(rng.integers(1, 7))
    narrowest = int(rng.integers(1, widest // 2 + 2))
    widths = sorted({1, widest, *rng.integers(1, widest + 1, 2).tolist()})
    curve = tuple((w, 50.0 * w ** rng.uniform(0.5, 1.1)) for w in widths)
    return MixJob(name, narrowest, widest, curve, None, rng.uniform(0, 60), rng.uniform(0, 60), 0.0)


def rate(job: MixJob, width: float) -> float:
    """Its measured throughput, linear between the points, in units of its one-node throughput; none while it has too
    few nodes to run."""
    if width < job.min_width:
        return 0.0
    points = [(0, 0.0), *job.curve]
    samples = np.interp(width, [w for w, _ in points], [r for _, r in points])
    return float(samples * job.curve[0][0] / job.curve[0][1])


def objective(event: Event, widths: Sequence[int]) -> float:
    """What a choice of widths is worth, as published."""
    assert sum(widths) <= event.nodes
    worth = 0.0
    for job, now, width in zip(event.jobs, event.current, widths, strict=True):
        assert width == 0 or job.min_width <= width <= job.max_width
        cost_s = job.rescale_up_s if width > now else job.rescale_down_s if width < now else 0.0
        worth += event.horizon_s * rate(job, width) - cost_s * rate(job, now)
    return worth


def decided(event: Event) -> list[int]:
    """The widths that the policy gives."""
    policy = bftrainer({job.id: job for job in event.jobs}, event.horizon_s)
    standings = [_standing(job, now) for job, now in zip(event.jobs, event.current, strict=True)]
    return list(policy.share(standings, event.nodes))


def _standing(job: MixJob, width: int) -> Standing:
    slots = tuple(WorkerSlot(f"{job.id}-{n}", Role.TRAINER, LeaseKey(f"{job.id}-{n}", 1), ("0",)) for n in range(width))
    known = Job(job.id, job.id, JobKind.TRAIN, "ada", JobState.RUNNING, 0.0, "{}", job.needs)
    return Standing(replace(known, assignment=Assignment(job.id, 1, slots)), staying=slots)


def published_optimum(event: Event) -> float:
    """The program over job and node: x[j, n] if the job has the node. Its throughput is a convex combination of two
    neighbouring points of its curve; it keeps all of its nodes, or takes no others."""
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    solver.setOptionValue("mip_rel_gap", 1e-9)
    own_JN = np.zeros((len(event.jobs), event.nodes), dtype=bool)
    first = 0
    for row, now in enumerate(event.current):
        own_JN[row, first : first + now] = True
        first += now
    held: list[list[Any]] = []
    worth: Any = 0.0
    for job, own_N in zip(event.jobs, own_JN, strict=True):
        x_N, of_job = _add_job(solver, job, own_N, event.horizon_s)
        held.append(x_N)
        worth += of_job
    for node in range(event.nodes):
        solver.addConstr(sum(x_N[node] for x_N in held) <= 1)
    solver.maximize(worth)
    assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return float(solver.getObjectiveValue())


def _add_job(solver: highspy.Highs, job: MixJob, own_N: NDArray[np.bool_], horizon_s: float) -> tuple[list[Any], Any]:
    """One job's variables and rows: which nodes it has, and what it is worth."""
    nodes, now = len(own_N), int(own_N.sum())
    x_N = [solver.addBinary() for _ in range(nodes)]
    width = sum(x_N)
    runs, grows, shrinks = solver.addBinary(), solver.addBinary(), solver.addBinary()
    solver.addConstr(width >= job.min_width * runs)
    solver.addConstr(width <= job.max_width * runs)
    most = 2 * nodes + 1
    solver.addConstr(width - now <= most * grows)
    solver.addConstr(now - width <= most * shrinks)
    for node in range(nodes):
        if own_N[node]:
            solver.addConstr(x_N[node] >= 1 - shrinks)
        else:
            solver.addConstr(x_N[node] <= grows)
    solver.addConstr(grows + shrinks <= 1)
    points = [0, *(w for w, _ in job.curve)]
    share_P = [solver.addVariable(lb=0, ub=1) for _ in points]
    between_S = [solver.addBinary() for _ in points[1:]]
    solver.addConstr(sum(share_P) == 1)
    solver.addConstr(sum(between_S) == 1)
    for point, share in enumerate(share_P):
        solver.addConstr(share <= sum(between_S[max(0, point - 1) : point + 1]))
    solver.addConstr(sum(w * share for w, share in zip(points, share_P, strict=True)) == width)
    unit = job.curve[0][0] / job.curve[0][1]
    throughput = sum(samples * unit * share for (_, samples), share in zip(job.curve, share_P[1:], strict=True))
    costs = (job.rescale_up_s * grows + job.rescale_down_s * shrinks) * rate(job, now)
    return x_N, horizon_s * throughput - costs


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_nothing_is_better_by_the_published_program(seed: int, count: int) -> None:
    event = event_of(seed, count)
    assert objective(event, decided(event)) == pytest.approx(published_optimum(event), abs=1e-5)


def test_a_start_is_free_and_a_short_horizon_pays_for_no_growth() -> None:
    """The instances of the test above would all be alike if the horizon or the costs did not matter."""
    alone = MixJob("a", 1, 4, ((1, 10.0), (4, 40.0)), None, 100.0, 0.0, 0.0)
    assert decided(Event((alone,), (0,), 4, 60.0)) == [4]
    assert decided(Event((alone,), (2,), 4, 60.0)) == [2]
    assert decided(Event((alone,), (2,), 4, 600.0)) == [4]

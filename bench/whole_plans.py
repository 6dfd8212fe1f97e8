"""Whole plans of a large machine: snapshots as the control loop makes them, one after the other.

Nodes are idle since many instants (cohorts of a hundred), jobs have curves with noise, weights, rescale costs of their
own. `follow` carries a plan out as sites would, so that the next snapshot shares with this one all that did not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState
from scheduler.domain.jobs import Job, JobKind, JobState, RescaleCosts, Role, RoleNeed, Worker, WorkerState
from scheduler.domain.plan import Assign, Outlook, Plan, Snapshot

SITE = "site"
COHORT = 100
"""Nodes that became idle together."""

MEASURED = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256)
OLDEST_S = 4 * 3600.0
START_S = 1e6

_DEVICES = (Device("gpu:0", "gpu", "a gpu", 2**40, 1),)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the loop's inventory would hold."""

    version: int
    now_s: float
    leases: Mapping[str, Lease]
    jobs: Mapping[str, Job]
    workers: Mapping[str, Worker]
    last_epoch: int

    def snapshot(self) -> Snapshot:
        """What the planner would be given."""
        return Snapshot(
            self.version,
            self.now_s,
            tuple(self.leases[node] for node in sorted(self.leases)),
            tuple(self.jobs[job] for job in sorted(self.jobs)),
            (SITE,),
            tuple(self.workers[worker] for worker in sorted(self.workers)),
            outlooks=(Outlook(SITE, 300.0, (2.0 / 3600,) * 20),),
        )


def machine(jobs: int, nodes: int, widest: int, seed: int, kind: JobKind = JobKind.TRAIN) -> Machine:
    """A machine with all nodes free and all jobs waiting."""
    rng = np.random.default_rng(seed)
    ages_s = np.sort(rng.uniform(0.0, OLDEST_S, max(1, nodes // COHORT)))
    leases = [_lease(f"n{number:06}", number + 1, START_S - ages_s[number % len(ages_s)]) for number in range(nodes)]
    made = [_job(rng, f"job-{number:06}", widest, kind) for number in range(jobs)]
    return Machine(1, START_S, {lease.key.node: lease for lease in leases}, {job.id: job for job in made}, {}, nodes)


def _lease(node: str, epoch: int, started_s: float) -> Lease:
    cohort = f"{SITE}@{started_s:.3f}"
    return Lease(LeaseKey(node, epoch), SITE, LeaseState.READY, _DEVICES, "", float(started_s), cohort)


def _job(rng: np.random.Generator, name: str, widest: int, kind: JobKind) -> Job:
    first = int(rng.integers(1, 5))
    most = int(rng.integers(max(first, widest // 2), widest + 1))
    exponent = rng.uniform(0.4, 1.0)
    return Job(
        name,
        name,
        kind,
        f"user-{rng.integers(50)}",
        JobState.QUEUED,
        START_S - float(rng.uniform(0, 3600)),
        "{}",
        (RoleNeed(Role.TRAINER, first, most),),
        weight=float(rng.choice([0.5, 1, 1, 2])),
        curve=tuple((at, at**exponent * float(rng.uniform(0.95, 1.05))) for at in MEASURED if at <= most),
        costs=RescaleCosts(float(rng.uniform(0.5, 30)), float(rng.uniform(0.5, 15))),
    )


def follow(before: Machine, plan: Plan, after_s: float = 60.0) -> Machine:
    """The machine some time after a plan, carried out and settled."""
    jobs, workers = dict(before.jobs), dict(before.workers)
    for step in plan.steps:
        if isinstance(step, Assign):
            _carry_out(step, before.now_s, jobs, workers)
    return replace(before, version=before.version + 1, now_s=before.now_s + after_s, jobs=jobs, workers=workers)


def _carry_out(step: Assign, now_s: float, jobs: dict[str, Job], workers: dict[str, Worker]) -> None:
    assignment, job = step.assignment, jobs[step.assignment.job]
    for slot in job.assignment.workers if job.assignment else ():
        workers.pop(slot.worker, None)
    for slot in assignment.workers:
        workers[slot.worker] = Worker(
            slot.worker, job.id, slot.role, slot.lease, slot.devices, WorkerState.RUNNING, now_s
        )
    jobs[job.id] = replace(
        job,
        state=JobState.RUNNING if assignment.workers else JobState.PARKED,
        assignment=assignment,
        reached_revision=assignment.revision,
        started_s=job.started_s if job.started_s is not None else now_s,
        turned_s=now_s,
        site=SITE,
        stalled_until_s=now_s + job.costs.up_s,
    )


def disturb(before: Machine, leave: Iterable[str], come: Iterable[str]) -> Machine:
    """Some nodes go, with the workers on them, and others come."""
    leases = dict(before.leases)
    gone = {leases.pop(node).key for node in leave}
    epoch = before.last_epoch
    for node in come:
        epoch += 1
        leases[node] = _lease(node, epoch, before.now_s)
    workers = {name: worker for name, worker in before.workers.items() if worker.lease not in gone}
    return replace(before, version=before.version + 1, leases=leases, workers=workers, last_epoch=epoch)

"""Committed steps change the inventory here, and nowhere else."""

from __future__ import annotations

from scheduler.domain.changing import changed
from scheduler.domain.cluster import Lease
from scheduler.domain.jobs import Job, JobState, Worker, WorkerSlot, WorkerState
from scheduler.domain.plan import Assign, Release
from scheduler.inventory.effects import Leave, SendAssignment
from scheduler.inventory.holding import rebook
from scheduler.inventory.records import Records


def assign(r: Records, step: Assign) -> None:
    """Give a job the workers of a step that commit has checked."""
    before, wanted = r.jobs[step.assignment.job], step.assignment.workers
    kept = {slot.worker for slot in wanted}
    changed = [slot for slot in wanted if slot.worker not in r.workers]
    leavers = [w for w in r.workers_of(before.id) if w.id not in kept and w.state is not WorkerState.LEAVING]
    for worker in leavers:
        r.move(worker, WorkerState.LEAVING, since_s=r.now_s)
    for slot in changed:
        r.put(_new_worker(r, before, slot))
    job = _take_up(r, before, step)
    touched = {slot.lease for slot in changed} | {worker.lease for worker in leavers}
    if job.state is not before.state:  # then all of its workers count as something else from now on
        touched |= {worker.lease for worker in r.workers_of(job.id)}
    for key in sorted(touched):
        rebook(r, key)
    message = f"{step.cause}: revision {step.assignment.revision}, width {step.assignment.width}"
    r.log("assign", message, job=job.id, site=job.site, revision=step.assignment.revision, cause=step.cause)
    r.last_step[job.id] = step
    send(r, job, step)


def _new_worker(r: Records, job: Job, slot: WorkerSlot) -> Worker:
    return Worker(slot.worker, job.id, slot.role, slot.lease, slot.devices, WorkerState.STARTING, r.now_s)


def _take_up(r: Records, job: Job, step: Assign) -> Job:
    fields = {
        "assignment": step.assignment,
        "site": _site(r, step) or job.site,
        **_turn(job, step, r.now_s),
        "stalled_until_s": r.now_s + _stall_s(job, step),
    }
    state = _state_after(job, bool(step.assignment.workers))
    if state is job.state:
        r.put(changed(job, **fields))
    else:
        r.move(job, state, **fields)
    return r.jobs[job.id]


def _turn(job: Job, step: Assign, now_s: float) -> dict[str, float]:
    """What changes if the job gets its first, or loses its last worker."""
    if bool(job.width) == bool(step.assignment.workers):
        return {}
    return {"turned_s": now_s} if job.width else {"turned_s": now_s, "waited_s": now_s - job.turned_s}


def _stall_s(job: Job, step: Assign) -> float:
    """How long the job should stand still for this step, by its costs."""
    before = {slot.worker for slot in job.assignment.workers} if job.assignment else set()
    gains = any(slot.worker not in before for slot in step.assignment.workers)
    return job.costs.up_s if gains else job.costs.down_s


def _site(r: Records, step: Assign) -> str:
    return next((r.leases[slot.lease].site for slot in step.assignment.workers), "")


def _state_after(job: Job, has_workers: bool) -> JobState:
    if has_workers:
        return JobState.STARTING if job.state in (JobState.QUEUED, JobState.PARKED) else job.state
    if job.state is JobState.STARTING and job.started_s is None:
        return JobState.QUEUED
    return JobState.PARKED if job.state in (JobState.STARTING, JobState.RUNNING) else job.state


def send(r: Records, job: Job, step: Assign) -> None:
    """Have the job's site told of its newest assignment."""
    keys = sorted({slot.lease for slot in step.assignment.workers})
    leases: tuple[Lease, ...] = tuple(r.leases[key] for key in keys if key in r.leases)
    r.effects.append(SendAssignment(job, step, leases, r.lost_workers.get(job.id, ())))


def release(r: Records, step: Release) -> None:
    """No worker is left on a draining lease: its agent may stop the raylet."""
    lease = r.leases[step.lease]
    r.put(changed(lease, released_s=r.now_s))
    r.log("release", f"{step.lease} is empty: {step.cause}", node=step.lease.node, site=lease.site)
    r.effects.append(Leave(r.leases[step.lease], step.cause))

"""A plan is a proposal made of an older snapshot: what still fits the newest inventory is carried out, step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from scheduler.domain.cluster import LeaseState
from scheduler.domain.jobs import Job, JobState, WorkerSlot, WorkerState
from scheduler.domain.plan import Plan, Rejected, Release, Step
from scheduler.domain.reasons import Reason
from scheduler.inventory import Inventory

AGAIN = "The next plan takes it into account; nothing needs to be done."


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a plan's steps."""

    applied: tuple[Step, ...]
    rejected: tuple[Rejected, ...]


def commit(plan: Plan, inventory: Inventory, now_s: float) -> Committed:
    """Check each step against the inventory as it is now, carry it out whole, or reject it with a reason."""
    inventory.advance(now_s)
    applied: list[Step] = []
    rejected: list[Rejected] = []
    for step in plan.steps:
        reason = why_not(step, inventory)
        if reason is None:
            _carry_out(step, inventory)
            applied.append(step)
        else:
            rejected.append(Rejected(step, reason))
            inventory.reject(rejected[-1])
    return Committed(tuple(applied), tuple(rejected))


def why_not(step: Step, inventory: Inventory) -> Reason | None:
    """Why a step does not fit the inventory as it is now, or None if it does."""
    if isinstance(step, Release):
        return _why_not_release(step, inventory)
    job = inventory.jobs.get(step.assignment.job)
    if job is None or not job.state.is_live or job.state is JobState.ENDING:
        return Reason("job_over", f"job {step.assignment.job} is ending or over.", AGAIN)
    if step.assignment.revision != job.assignment_revision + 1:
        message = f"revision {step.assignment.revision} of {job.id} does not follow {job.assignment_revision}."
        return Reason("superseded", message, AGAIN)
    slots = step.assignment.workers
    return _why_not_whole(job, slots) or _why_not_together(slots, inventory) or _why_not_slots(job, slots, inventory)


def _carry_out(step: Step, inventory: Inventory) -> None:
    if isinstance(step, Release):
        inventory.release(step)
    else:
        inventory.assign(step)


def _why_not_release(step: Release, inventory: Inventory) -> Reason | None:
    lease = inventory.leases.get(step.lease)
    if lease is None or lease.state is not LeaseState.DRAINING or lease.released_s is not None:
        return Reason("not_draining", f"lease {step.lease} does not wait for its release.", AGAIN)
    if inventory.workers_on(step.lease):
        return Reason("not_empty", f"lease {step.lease} still carries workers.", AGAIN)
    return None


def _why_not_whole(job: Job, slots: tuple[WorkerSlot, ...]) -> Reason | None:
    counts = Counter(slot.role for slot in slots)
    for need in job.needs if slots else ():
        if not need.min <= counts[need.role] <= need.max:
            message = f"job {job.id} needs {need.min} to {need.max} {need.role} workers, not {counts[need.role]}."
            return Reason("gang_not_whole", message, AGAIN)
    return None


def _why_not_together(slots: tuple[WorkerSlot, ...], inventory: Inventory) -> Reason | None:
    devices = Counter((slot.lease, device) for slot in slots for device in slot.devices)
    twice = sorted((str(key), device) for (key, device), count in devices.items() if count > 1)
    if twice or len({slot.worker for slot in slots}) < len(slots):
        return Reason("booked_twice", f"the step names a device or a worker twice: {twice}.", AGAIN)
    homes = sorted({inventory.leases[slot.lease].site for slot in slots if slot.lease in inventory.leases})
    if len(homes) > 1:
        return Reason("two_sites", f"a job lives at one site, not at {', '.join(homes)}.", AGAIN)
    return None


def _why_not_slots(job: Job, slots: tuple[WorkerSlot, ...], inventory: Inventory) -> Reason | None:
    for slot in slots:
        reason = _why_not_slot(job, slot, inventory)
        if reason:
            return reason
    return None


def _why_not_slot(job: Job, slot: WorkerSlot, inventory: Inventory) -> Reason | None:
    worker = inventory.workers.get(slot.worker)
    if worker is None:
        return _why_not_new(slot, inventory)
    same = (worker.job, worker.role, worker.lease, worker.devices) == (job.id, slot.role, slot.lease, slot.devices)
    if not same or worker.state not in (WorkerState.STARTING, WorkerState.RUNNING):
        return Reason("worker_gone", f"worker {slot.worker} is {worker.state} on {worker.lease}.", AGAIN)
    return None


def _why_not_new(slot: WorkerSlot, inventory: Inventory) -> Reason | None:
    lease = inventory.leases.get(slot.lease)
    if lease is None or not lease.is_live:
        return Reason("lease_over", f"lease {slot.lease} is over.", AGAIN)
    if lease.state is not LeaseState.READY or inventory.is_suspect(slot.lease.node):
        return Reason("lease_not_ready", f"lease {slot.lease} is {lease.state}, or its agent is away.", AGAIN)
    site = inventory.sites.get(lease.site)
    if site is None or not site.connected:
        return Reason("site_away", f"site {lease.site} is not connected.", "Start `fallow site` there again.")
    for device in slot.devices:
        holder = inventory.worker_on(slot.lease, device)
        if holder or device not in {d.id for d in lease.devices}:
            message = f"device {device} of {slot.lease} is {'held by ' + holder if holder else 'not lent'}."
            return Reason("device_taken", message, AGAIN)
    if not slot.devices:
        return Reason("no_device", f"worker {slot.worker} has no device.", AGAIN)
    return None

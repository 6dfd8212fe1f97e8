"""Nouns and commands: from the domain to the wire, and nouns back again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from protocol import agent_pb2, common_pb2, site_pb2
from scheduler.domain.cluster import Device, Lease, LeaseKey, Site
from scheduler.domain.jobs import Job, Role, WorkerSlot
from scheduler.domain.plan import Assign
from scheduler.domain.reasons import Reason
from scheduler.rpc import checks

# --- nouns ---------------------------------------------------------------------------------------------------------


def device_to_wire(device: Device) -> common_pb2.Device:
    """A device."""
    return common_pb2.Device(
        id=device.id, kind=device.kind, model=device.model, memory_bytes=device.memory_bytes, cores=device.cores
    )


def device_from_wire(message: common_pb2.Device) -> Device:
    """A device. Raises `Refused`."""
    if not message.id or len(message.id) > 200:
        raise checks.invalid("device.id", f"{message.id[:60]!r} is no id.", "Give each device an id of its own.")
    return Device(
        id=message.id,
        kind=checks.name("device.kind", message.kind),
        model=checks.text(message.model),
        memory_bytes=checks.count("device.memory_bytes", message.memory_bytes),
        cores=checks.count("device.cores", message.cores),
    )


def lease_to_wire(key: LeaseKey) -> common_pb2.LeaseRef:
    """The name of a lease."""
    return common_pb2.LeaseRef(node=key.node, epoch=key.epoch)


def lease_from_wire(message: common_pb2.LeaseRef) -> LeaseKey:
    """The name of a lease. Raises `Refused`."""
    return LeaseKey(checks.name("lease.node", message.node), checks.count("lease.epoch", message.epoch, 1))


def reason_to_wire(reason: Reason) -> common_pb2.Reason:
    """A reason."""
    return common_pb2.Reason(code=reason.code, message=reason.message, remedy=reason.remedy)


def reason_from_wire(message: common_pb2.Reason) -> Reason:
    """A reason; what its sender left out is said in general words."""
    return Reason(
        checks.text(message.code) or "refused",
        checks.text(message.message) or "No reason was given.",
        checks.text(message.remedy),
    )


def slot_to_wire(slot: WorkerSlot, leases: Mapping[LeaseKey, Lease]) -> common_pb2.WorkerSlot:
    """A worker of an assignment, with what others must know of the lease it is on, as far as that is known."""
    lease = leases.get(slot.lease)
    return common_pb2.WorkerSlot(
        worker=slot.worker,
        role=slot.role.value,
        lease=lease_to_wire(slot.lease),
        devices=slot.devices,
        experts=[common_pb2.Expert(layer=layer, expert=expert) for layer, expert in slot.experts],
        address=lease.address if lease else "",
        cohort=lease.cohort if lease else "",
    )


def slot_from_wire(message: common_pb2.WorkerSlot) -> WorkerSlot:
    """A worker of an assignment. Raises `Refused`."""
    return WorkerSlot(
        worker=checks.name("worker", message.worker),
        role=Role(checks.one_of("role", message.role, tuple(Role))),
        lease=lease_from_wire(message.lease),
        devices=tuple(message.devices),
        experts=tuple((e.layer, e.expert) for e in message.experts),
    )


# --- commands to agents ------------------------------------------------------------------------------------------


def granted(lease: Lease) -> agent_pb2.AgentCommand:
    """The agent's node is under a lease now."""
    return agent_pb2.AgentCommand(granted=agent_pb2.LeaseGranted(epoch=lease.key.epoch))


def join(lease: Lease, site: Site) -> agent_pb2.AgentCommand:
    """Start the raylet."""
    return agent_pb2.AgentCommand(
        join=agent_pb2.JoinSite(
            epoch=lease.key.epoch,
            ray_address=site.ray_address,
            ray_token=site.ray_token,
            ray_version=site.ray_version,
        )
    )


def leave(lease: Lease, cause: str) -> agent_pb2.AgentCommand:
    """Stop the raylet."""
    return agent_pb2.AgentCommand(leave=agent_pb2.LeaveSite(epoch=lease.key.epoch, cause=cause))


def reclaim(lease: Lease, grace_s: float, cause: str) -> agent_pb2.AgentCommand:
    """Reclaim the node as its owner would."""
    return agent_pb2.AgentCommand(reclaim=agent_pb2.ReclaimAsked(epoch=lease.key.epoch, grace_s=grace_s, cause=cause))


# --- commands to sites -------------------------------------------------------------------------------------------


def assignment(job: Job, step: Assign, leases: Iterable[Lease], lost_workers: Iterable[str]) -> site_pb2.SiteCommand:
    """The whole set of workers that a job is to have."""
    by_key = {lease.key: lease for lease in leases}
    message = site_pb2.Assignment(
        job=job.id,
        revision=step.assignment.revision,
        spec_json=job.spec_json,
        workers=[slot_to_wire(slot, by_key) for slot in step.assignment.workers],
        cause=step.cause,
        deadline_s=step.deadline_s,
        lost_workers=lost_workers,
    )
    return site_pb2.SiteCommand(assign=message)


def end(job: Job, cause: str) -> site_pb2.SiteCommand:
    """End a job."""
    return site_pb2.SiteCommand(end=site_pb2.EndJob(job=job.id, cause=cause))


def forget(key: LeaseKey) -> site_pb2.SiteCommand:
    """A lease is over."""
    return site_pb2.SiteCommand(forget=site_pb2.ForgetNode(lease=lease_to_wire(key)))

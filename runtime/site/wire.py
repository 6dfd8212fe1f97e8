"""Between the wire's messages and the nouns of `runtime.site.controller`."""

from __future__ import annotations

from protocol import common_pb2, site_pb2
from protocol.jobspec import parse_json
from runtime.site.controller import Assignment, LeaseKey, WorkerSlot


def lease_from_wire(message: common_pb2.LeaseRef) -> LeaseKey:
    """A lease's key."""
    return LeaseKey(message.node, message.epoch)


def lease_to_wire(lease: LeaseKey) -> common_pb2.LeaseRef:
    """A lease's key."""
    return common_pb2.LeaseRef(node=lease.node, epoch=lease.epoch)


def assignment_from_wire(message: site_pb2.Assignment) -> Assignment:
    """An assignment with its spec read. Raises `InvalidSpec`."""
    return Assignment(
        job=message.job,
        revision=message.revision,
        workers=tuple(_slot_from_wire(slot) for slot in message.workers),
        cause=message.cause,
        deadline_s=message.deadline_s if message.HasField("deadline_s") else None,
        lost_workers=tuple(message.lost_workers),
        spec=parse_json(message.spec_json),
    )


def _slot_from_wire(message: common_pb2.WorkerSlot) -> WorkerSlot:
    return WorkerSlot(
        worker=message.worker,
        role=message.role,
        lease=lease_from_wire(message.lease),
        devices=tuple(message.devices),
        experts=tuple((expert.layer, expert.expert) for expert in message.experts),
        address=message.address or "127.0.0.1",
        cohort=message.cohort,
    )

"""What a worker must hold in memory, and so the narrowest width at which a model fits."""

from __future__ import annotations

from scheduler.domain.jobs import Job, ModelShape, Role, RoleNeed

NO_EXPERTS = (Role.ENGINE, Role.RUNNER)


def worker_bytes(shape: ModelShape | None, role: Role, hosts: int) -> int:
    """Memory that one of `hosts` workers of a role needs; what need not fit twice is counted once.

    Every trainer and engine holds the dense part. Trainers share the experts out; so do shards, each expert once at
    least (further copies are made where there is room).
    """
    if shape is None or role is Role.RUNNER:
        return 0
    dense = 0 if role is Role.SHARD else shape.dense_bytes
    share = 0 if role in NO_EXPERTS else -(-shape.layers * shape.experts // max(1, hosts))
    return dense + share * shape.expert_bytes


def least_bytes(job: Job) -> int:
    """Memory that each of its devices must have at least, at its widest."""
    return max((worker_bytes(job.shape, need.role, need.max) for need in job.needs), default=0)


def least_workers(job: Job, need: RoleNeed, memory_bytes: int) -> int | None:
    """Fewest workers of a role that fit on devices with so much memory; None if even the most do not."""
    widths = range(need.min, need.max + 1)
    return next((n for n in widths if worker_bytes(job.shape, need.role, n) <= memory_bytes), None)


def expert_slots(shape: ModelShape, memory_bytes: int) -> int:
    """How many pairs a shard on a device with so much memory can hold."""
    return memory_bytes // max(1, shape.expert_bytes)

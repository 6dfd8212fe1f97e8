"""Snapshot in, plan out. Reads no clock, no chance, no log: the same snapshot gives the same plan."""

from __future__ import annotations

from scheduler.domain.cluster import LeaseState
from scheduler.domain.plan import Plan, Release, Snapshot


def plan(snapshot: Snapshot) -> Plan:
    """What to change, and why what does not run does not."""
    busy = {worker.lease for worker in snapshot.workers}
    steps = tuple(
        Release(lease.key, lease.drain_cause)
        for lease in snapshot.leases
        if lease.state is LeaseState.DRAINING and lease.released_s is None and lease.key not in busy
    )
    return Plan(snapshot.version, steps, ())

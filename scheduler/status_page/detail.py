"""One node in full, for whoever points at it on the map. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from scheduler.domain.cluster import Lease, Node
from scheduler.domain.jobs import WorkerState
from scheduler.status_page.capacity import Facts
from scheduler.status_page.job_view import finite


@dataclass(frozen=True, slots=True)
class NodeDetail:
    """A node, its lease and what runs there. `work` has (job id, job name, workers)."""

    id: str
    site: str
    state: str
    devices: tuple[str, ...]
    spare_devices: int
    source: str
    reason: str
    grace_s: float
    last_report_s: float
    lease_epoch: int | None
    lease_state: str
    lease_started_s: float | None
    cohort: str
    expected_end_s: float | None
    deadline_s: float | None
    drain_cause: str
    work: tuple[tuple[str, str, int], ...]
    reclaims: int
    last_free_s: float | None


def node_detail(facts: Facts, node: Node) -> NodeDetail:
    """Everything that the page says of a node."""
    lease = next((lease for lease in facts.leases.values() if lease.key.node == node.id and lease.is_live), None)
    handed_back = [record for record in facts.reclaims if record.node == node.id]
    end_s = lease.expected_end_s if lease else node.expected_end_s
    return NodeDetail(
        id=node.id,
        site=node.site,
        state=node.state.value,
        devices=tuple(device.model or device.kind for device in node.devices),
        spare_devices=len(node.spare_devices),
        source=node.source,
        reason=node.reason,
        grace_s=node.grace_s,
        last_report_s=node.last_report_s,
        lease_epoch=lease.key.epoch if lease else None,
        lease_state=lease.state.value if lease else "",
        lease_started_s=lease.started_s if lease else None,
        cohort=lease.cohort if lease else "",
        expected_end_s=finite(end_s) if end_s is not None else None,
        deadline_s=lease.deadline_s if lease else None,
        drain_cause=lease.drain_cause if lease else "",
        work=_work(facts, lease) if lease else (),
        reclaims=len(handed_back),
        last_free_s=handed_back[-1].free_s if handed_back else None,
    )


def _work(facts: Facts, lease: Lease) -> tuple[tuple[str, str, int], ...]:
    gone = (WorkerState.ENDED, WorkerState.LOST)
    counts = Counter(w.job for w in facts.workers.values() if w.lease == lease.key and w.state not in gone)
    return tuple((job, facts.jobs[job].name, count) for job, count in sorted(counts.items()) if job in facts.jobs)

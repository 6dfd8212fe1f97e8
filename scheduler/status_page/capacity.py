"""What every borrowed device does at this instant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler.domain.cluster import Lease, LeaseKey, Node, ReclaimRecord, Site
from scheduler.domain.jobs import Job, JobState, Worker, WorkerState
from scheduler.domain.ledger import Account, AccountKey


class Facts(Protocol):
    """What the page reads of the inventory."""

    @property
    def nodes(self) -> Mapping[str, Node]: ...
    @property
    def leases(self) -> Mapping[LeaseKey, Lease]: ...
    @property
    def jobs(self) -> Mapping[str, Job]: ...
    @property
    def workers(self) -> Mapping[str, Worker]: ...
    @property
    def sites(self) -> Mapping[str, Site]: ...
    @property
    def accounts(self) -> Mapping[AccountKey, Account]: ...
    @property
    def reclaims(self) -> Sequence[ReclaimRecord]: ...
    @property
    def version(self) -> int:
        """Grows with every change but those of progress and of when an agent was last heard."""


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Devices of one or more leases by what they do; together they are all that is borrowed."""

    useful: int = 0
    rescale: int = 0
    idle: int = 0

    @property
    def borrowed(self) -> int:
        """All of them."""
        return self.useful + self.rescale + self.idle

    def __add__(self, other: DeviceUse) -> DeviceUse:
        return DeviceUse(self.useful + other.useful, self.rescale + other.rescale, self.idle + other.idle)


def use_by_lease(facts: Facts) -> dict[LeaseKey, DeviceUse]:
    """Devices of each live lease: under a running worker, under one that comes or goes, or under none."""
    counts = {key: [0, 0] for key, lease in facts.leases.items() if lease.is_live}
    running = {job.id for job in facts.jobs.values() if job.state is JobState.RUNNING}
    for worker in facts.workers.values():
        count = counts.get(worker.lease)
        if count is not None and worker.is_live:
            useful = worker.state is WorkerState.RUNNING and worker.job in running
            count[not useful] += len(worker.devices)
    return {
        key: DeviceUse(useful, rescale, max(0, len(facts.leases[key].devices) - useful - rescale))
        for key, (useful, rescale) in counts.items()
    }


def total_use(uses: Mapping[LeaseKey, DeviceUse]) -> DeviceUse:
    """Sum over leases."""
    return DeviceUse(
        sum(use.useful for use in uses.values()),
        sum(use.rescale for use in uses.values()),
        sum(use.idle for use in uses.values()),
    )

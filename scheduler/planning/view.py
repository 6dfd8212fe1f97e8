"""A snapshot as the planner looks at it: pools of devices, and how each job stands in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState
from scheduler.domain.jobs import Job, JobKind, JobState, Role, Worker, WorkerSlot, WorkerState
from scheduler.domain.plan import Snapshot

PoolKey = tuple[str, str]
"""(site, kind of device): devices of a pool are interchangeable but for memory and place."""


@dataclass(frozen=True, slots=True)
class Spot:
    """One device of a lease."""

    lease: Lease
    device: Device

    @property
    def id(self) -> tuple[LeaseKey, str]:
        """Sorts spots."""
        return self.lease.key, self.device.id


@dataclass(frozen=True, slots=True)
class Pool:
    """Devices of one kind at one site, by what can be done with them."""

    key: PoolKey
    free: tuple[Spot, ...] = ()  # nobody holds them
    emptying: tuple[Spot, ...] = ()  # free as soon as workers that leave are gone
    held: tuple[Spot, ...] = ()  # under workers that stay, of jobs that are planned
    draining: int = 0
    joining: int = 0
    suspect: int = 0

    @property
    def capacity(self) -> int:
        """Devices that can be shared out among jobs."""
        return len(self.free) + len(self.emptying) + len(self.held)

    def fitting(self, memory_bytes: int) -> int:
        """How many of them have so much memory."""
        return sum(s.device.memory_bytes >= memory_bytes for s in (*self.free, *self.emptying, *self.held))


@dataclass(frozen=True, slots=True)
class Standing:
    """A job, and what became of the workers that it was assigned."""

    job: Job
    staying: tuple[WorkerSlot, ...] = ()
    leaving: tuple[WorkerSlot, ...] = ()  # alive, on leases that drain
    lost: tuple[WorkerSlot, ...] = ()  # dead
    pool: PoolKey | None = None  # where it is, or must be

    @property
    def is_forced(self) -> bool:
        """Whether it cannot stay as it is."""
        return bool(self.leaving or self.lost)

    @property
    def in_flight(self) -> bool:
        """Whether its newest revision has not been reached: it is left alone meanwhile, unless forced."""
        return bool(self.staying) and self.job.reached_revision < self.job.assignment_revision

    @property
    def holds(self) -> bool:
        """Whether it has live workers."""
        return bool(self.staying or self.leaving)

    def staying_as(self, role: Role) -> tuple[WorkerSlot, ...]:
        """Workers of a role that stay."""
        return tuple(slot for slot in self.staying if slot.role is role)

    def leaving_as(self, role: Role) -> tuple[WorkerSlot, ...]:
        """Workers of a role that must leave."""
        return tuple(slot for slot in self.leaving if slot.role is role)

    @property
    def order(self) -> tuple[bool, bool, float, float, str]:
        """Who comes first: what runs, served models, weight, age."""
        job = self.job
        return not self.holds, job.kind is not JobKind.SERVE, -job.weight, job.submitted_s, job.id


@dataclass(frozen=True, slots=True)
class View:
    """See the module."""

    leases: dict[LeaseKey, Lease]
    pools: dict[PoolKey, Pool]
    standings: tuple[Standing, ...]  # in `order`
    sites: tuple[str, ...]


def look(snapshot: Snapshot) -> View:
    """Read a snapshot."""
    leases = {lease.key: lease for lease in sorted(snapshot.leases, key=lambda lease: lease.key)}
    workers = {worker.id: worker for worker in snapshot.workers}
    planned = [j for j in snapshot.jobs if j.state.is_live and j.state is not JobState.ENDING]
    sites = tuple(sorted(snapshot.connected_sites))
    standings = sorted((_stand(job, leases, workers, sites) for job in planned), key=lambda s: s.order)
    stayers = {slot.worker for standing in standings for slot in standing.staying}
    holders = {(w.lease, device): w for w in snapshot.workers for device in w.devices}
    return View(leases, _pools(snapshot, leases.values(), holders, stayers), tuple(standings), sites)


def _stand(job: Job, leases: dict[LeaseKey, Lease], workers: dict[str, Worker], sites: tuple[str, ...]) -> Standing:
    staying: list[WorkerSlot] = []
    leaving: list[WorkerSlot] = []
    lost: list[WorkerSlot] = []
    for slot in job.assignment.workers if job.assignment else ():
        lease = leases.get(slot.lease)
        if lease is None or slot.worker not in workers or workers[slot.worker].state is WorkerState.LEAVING:
            lost.append(slot)
        elif lease.state is LeaseState.DRAINING and lease.site in sites:
            leaving.append(slot)
        else:
            staying.append(slot)
    pool = next((_pool_of(slot, leases[slot.lease]) for slot in (*staying, *leaving)), None)
    return Standing(job, tuple(staying), tuple(leaving), tuple(lost), pool)


def _pool_of(slot: WorkerSlot, lease: Lease) -> PoolKey:
    kinds = {device.id: device.kind for device in lease.devices}
    return lease.site, kinds[slot.devices[0]]


def _pools(
    snapshot: Snapshot,
    leases: Iterable[Lease],
    holders: dict[tuple[LeaseKey, str], Worker],
    stayers: set[str],
) -> dict[PoolKey, Pool]:
    sorted_spots: dict[PoolKey, dict[str, list[Spot]]] = {}
    suspect = set(snapshot.suspect)
    for lease in leases:
        for device in sorted(lease.devices, key=lambda d: d.id):
            use = _use(lease, holders.get((lease.key, device.id)), stayers, lease.key in suspect)
            sorted_spots.setdefault((lease.site, device.kind), {}).setdefault(use, []).append(Spot(lease, device))
    return {key: _pool(key, uses) for key, uses in sorted(sorted_spots.items())}


def _use(lease: Lease, holder: Worker | None, stayers: set[str], is_suspect: bool) -> str:
    if lease.state is LeaseState.DRAINING:
        return "draining"
    if holder is not None and holder.id in stayers:
        return "held"
    if is_suspect:
        return "suspect"
    if lease.state is not LeaseState.READY:
        return "joining"
    if holder is None:
        return "free"
    return "emptying"


def _pool(key: PoolKey, uses: dict[str, list[Spot]]) -> Pool:
    return Pool(
        key,
        free=tuple(uses.get("free", ())),
        emptying=tuple(uses.get("emptying", ())),
        held=tuple(uses.get("held", ())),
        draining=len(uses.get("draining", ())),
        joining=len(uses.get("joining", ())),
        suspect=len(uses.get("suspect", ())),
    )

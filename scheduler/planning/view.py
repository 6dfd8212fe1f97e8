"""A snapshot as the planner looks at it: pools of devices, and how each job stands in them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState
from scheduler.domain.jobs import Job, JobKind, JobState, Role, Worker, WorkerSlot, WorkerState
from scheduler.domain.plan import Outlook, Snapshot
from scheduler.planning.worth import fairness_of

_SHARED = ("free", "emptying", "held")
"""Uses of devices that can be shared out among jobs."""

DEFAULT_HORIZON_S = 300.0
"""For a site of which nothing is known."""

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
    emptying: int = 0  # free as soon as workers that leave are gone
    held: int = 0  # under workers that stay, of jobs that are planned
    memory_bytes: tuple[int, ...] = ()  # of all these devices, sorted
    draining: int = 0
    joining: int = 0
    suspect: int = 0

    @property
    def capacity(self) -> int:
        """Devices that can be shared out among jobs."""
        return len(self.memory_bytes)

    def fitting(self, memory_bytes: int) -> int:
        """How many of them have so much memory."""
        return self.capacity - bisect_left(self.memory_bytes, memory_bytes)

    def smallest_fitting(self, memory_bytes: int) -> int:
        """Memory of the smallest of them that has so much; there must be one."""
        return self.memory_bytes[bisect_left(self.memory_bytes, memory_bytes)]


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
        """Whether its newest revision has not been reached."""
        return bool(self.staying) and self.job.reached_revision < self.job.assignment_revision

    def is_left_alone(self, now_s: float) -> bool:
        """Whether a rescale is under way that should not be disturbed: one that takes longer than its stall."""
        return self.in_flight and not self.is_forced and now_s >= self.job.stalled_until_s

    def stall_left_s(self, now_s: float) -> float:
        """How long it stands still yet, by its costs."""
        return max(0.0, self.job.stalled_until_s - now_s) if self.in_flight else 0.0

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
class Terms:
    """What all jobs are weighed by: the time, each site's outlook, who had how much of late, what budgets are spent,
    how many tokens each expert of a served model got.
    """

    now_s: float = 0.0
    outlooks: Mapping[str, Outlook] = field(default_factory=dict)
    fairness: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    expert_loads: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def horizon_s(self, site: str) -> float:
        """How long a decision at a site is likely to stand."""
        return self.outlooks[site].horizon_s if site in self.outlooks else DEFAULT_HORIZON_S


@dataclass(frozen=True, slots=True)
class View:
    """See the module."""

    leases: dict[LeaseKey, Lease]
    pools: dict[PoolKey, Pool]
    standings: tuple[Standing, ...]  # in `order`
    sites: tuple[str, ...]
    terms: Terms = Terms()


def look(snapshot: Snapshot) -> View:
    """Read a snapshot."""
    leases = {lease.key: lease for lease in snapshot.leases}
    workers = {worker.id: worker for worker in snapshot.workers}
    live = (j for j in snapshot.jobs if j.state.is_live and j.state is not JobState.ENDING)
    planned = [replace(j, needs=j.useful_needs) if j.wanted else j for j in live]
    sites = tuple(sorted(snapshot.connected_sites))
    standings = sorted((_stand(job, leases, workers, sites) for job in planned), key=lambda s: s.order)
    stayers = {slot.worker for standing in standings for slot in standing.staying}
    holders: dict[LeaseKey, dict[str, Worker]] = {}
    for worker in snapshot.workers:
        held = holders.setdefault(worker.lease, {})
        for device in worker.devices:
            held[device] = worker
    pools = _pools(snapshot, holders, stayers)
    return View(leases, pools, tuple(standings), sites, _terms(snapshot, planned))


def _terms(snapshot: Snapshot, planned: list[Job]) -> Terms:
    usages = {usage.user: usage.device_s for usage in snapshot.usages}
    users = {user: usages.get(user, 0.0) for user in sorted({job.user for job in planned})}
    outlooks = {outlook.site: outlook for outlook in snapshot.outlooks}
    return Terms(snapshot.now_s, outlooks, fairness_of(users), dict(snapshot.spent), dict(snapshot.expert_loads))


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


@dataclass(slots=True)
class _Count:
    """A pool as far as it is counted."""

    free: list[Spot] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    of_use: Counter[str] = field(default_factory=Counter)


def _pools(snapshot: Snapshot, holders: dict[LeaseKey, dict[str, Worker]], stayers: set[str]) -> dict[PoolKey, Pool]:
    """Runs through every device, of which there may be very many: most are free, and nobody asks for them."""
    counts: dict[PoolKey, _Count] = {}
    suspect = set(snapshot.suspect)
    for lease in snapshot.leases:
        held = holders.get(lease.key)
        is_suspect = bool(suspect) and lease.key in suspect
        devices = lease.devices if len(lease.devices) == 1 else sorted(lease.devices, key=lambda d: d.id)
        for device in devices:
            count = counts.get((lease.site, device.kind))
            if count is None:
                count = counts[lease.site, device.kind] = _Count()
            use = _use(lease, held.get(device.id) if held else None, stayers, is_suspect)
            count.of_use[use] += 1
            if use in _SHARED:
                count.memory_bytes.append(device.memory_bytes)
            if use == "free":
                count.free.append(Spot(lease, device))
    return {key: _pool(key, count) for key, count in sorted(counts.items(), key=lambda item: item[0])}


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


def _pool(key: PoolKey, count: _Count) -> Pool:
    uses = ("emptying", "held", "draining", "joining", "suspect")
    memory_bytes = tuple(sorted(count.memory_bytes))
    return Pool(key, tuple(count.free), memory_bytes=memory_bytes, **{use: count.of_use[use] for use in uses})

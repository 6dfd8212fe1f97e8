"""A snapshot as the planner looks at it: pools of devices, and how each job stands in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.domain.cluster import Device, Lease, LeaseKey
from scheduler.domain.jobs import Job, JobKind, Role, WorkerSlot
from scheduler.domain.plan import Outlook

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


Place = tuple[str, int, str]
"""Node, epoch and device: sorts spots like their ids, and faster."""


def place_of(spot: Spot) -> Place:
    """See `Place`."""
    key = spot.lease.key
    return key.node, key.epoch, spot.device.id


@dataclass(frozen=True, slots=True)
class Pool:
    """Devices of one kind at one site, by what can be done with them."""

    key: PoolKey
    free: Mapping[Place, Spot] = field(default_factory=dict)  # nobody holds them; in no order
    emptying: int = 0  # free as soon as workers that leave are gone
    starting: Mapping[Place, Spot] = field(default_factory=dict)  # under workers that stay and do not run yet
    held: int = 0  # under others that stay, of jobs that are planned
    memory_bytes: tuple[tuple[int, int], ...] = ()  # (bytes, how many of these devices have so much), sorted
    draining: int = 0
    joining: int = 0
    suspect: int = 0

    @property
    def capacity(self) -> int:
        """Devices that can be shared out among jobs."""
        return len(self.free) + self.emptying + len(self.starting) + self.held

    def fitting(self, memory_bytes: int) -> int:
        """How many of them have so much memory."""
        return sum(count for size, count in self.memory_bytes if size >= memory_bytes)

    def smallest_fitting(self, memory_bytes: int) -> int:
        """Memory of the smallest of them that has so much; there must be one."""
        return next(size for size, _ in self.memory_bytes if size >= memory_bytes)


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
        return _as(role, self.staying, self.job)

    def leaving_as(self, role: Role) -> tuple[WorkerSlot, ...]:
        """Workers of a role that must leave."""
        return _as(role, self.leaving, self.job)

    @property
    def order(self) -> tuple[bool, bool, float, float, str]:
        """Who comes first: what runs, served models, weight, age."""
        job = self.job
        return not self.holds, job.kind is not JobKind.SERVE, -job.weight, job.submitted_s, job.id


def _as(role: Role, slots: tuple[WorkerSlot, ...], job: Job) -> tuple[WorkerSlot, ...]:
    """Most jobs have one role, and are asked for it all the time."""
    if len(job.needs) == 1:
        return slots if job.needs[0].role is role else ()
    return tuple(slot for slot in slots if slot.role is role)


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


@dataclass(frozen=True, slots=True)
class View:
    """See the module."""

    leases: dict[LeaseKey, Lease]
    pools: dict[PoolKey, Pool]
    standings: tuple[Standing, ...]  # in `order`
    sites: tuple[str, ...]
    terms: Terms = Terms()
    drained: tuple[Lease, ...] = ()  # that drain, carry no worker and were not released yet, by key

"""Jobs, their workers and assignments."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from scheduler.domain.cluster import LeaseKey


class JobKind(StrEnum):
    """What a user submits."""

    TRAIN = "train"
    SERVE = "serve"
    TASK = "task"


class JobState(StrEnum):
    """How far a job is."""

    QUEUED = "queued"  # never ran
    STARTING = "starting"  # has an assignment, no useful step yet
    RUNNING = "running"
    PARKED = "parked"  # ran, has no workers now, will go on
    ENDING = "ending"  # told to end; its site has not confirmed yet
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        """Whether the job may still get or hold workers."""
        return self not in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class WorkerState(StrEnum):
    """How far a worker is."""

    STARTING = "starting"
    RUNNING = "running"
    LEAVING = "leaving"  # no longer in its job's assignment, not yet gone
    ENDED = "ended"
    LOST = "lost"


class Role(StrEnum):
    """What a worker does for its job."""

    TRAINER = "trainer"
    ENGINE = "engine"
    SHARD = "shard"
    RUNNER = "runner"


ExpertId = tuple[int, int]
"""(layer, expert)"""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What placing a Mixture-of-Experts model needs: counts and bytes."""

    layers: int
    experts: int  # per layer
    expert_bytes: int  # of one expert, with optimiser state when training
    dense_bytes: int  # of everything else, on every worker that holds it


@dataclass(frozen=True, slots=True)
class RoleNeed:
    """How many workers of a role a job wants. One worker takes one device."""

    role: Role
    min: int
    max: int


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """One worker of an assignment. Invariant: it lives on one lease and keeps its id for its whole life."""

    worker: str
    role: Role
    lease: LeaseKey
    devices: tuple[str, ...]
    experts: tuple[ExpertId, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """The whole set of workers that a job is to have. Revisions of a job only grow."""

    job: str
    revision: int
    workers: tuple[WorkerSlot, ...]

    @property
    def width(self) -> int:
        """Number of workers."""
        return len(self.workers)


@dataclass(frozen=True, slots=True)
class RescaleCosts:
    """Measured seconds that a job stands still when it gains / only loses workers."""

    up_s: float = 0.5
    down_s: float = 0.5


@dataclass(frozen=True, slots=True)
class RescaleRecord:
    """One rescale as the site measured it."""

    at_s: float
    cause: str
    width: int
    stall_s: float
    bytes_moved: int = 0
    at_step: int = 0
    steps_lost: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest that the site said of a job's work."""

    step: int = 0
    total: int = 0
    loss: float = 0.0
    rate: float = 0.0
    rate_unit: str = ""
    metrics: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """A measured width. `count` measurements went into `rate` (samples per second)."""

    width: int
    rate: float
    count: int = 1


@dataclass(frozen=True, slots=True)
class KindCurve:
    """What was measured on one kind of device. Invariant: points are sorted by width, none is there twice."""

    kind: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job.

    Invariants: `assignment.workers` is empty or satisfies every need's minimum (law 3); `ended_s` is set exactly
    when the state is not live; `curve` maps width to measured samples per second.
    """

    id: str
    name: str
    kind: JobKind
    user: str
    state: JobState
    submitted_s: float
    spec_json: str = field(repr=False)
    needs: tuple[RoleNeed, ...]
    weight: float = 1.0
    device_kinds: tuple[str, ...] = ()
    shape: ModelShape | None = None
    copies: int = 1  # live copies wanted of every expert
    curve: tuple[tuple[int, float], ...] = ()
    costs: RescaleCosts = RescaleCosts()
    assignment: Assignment | None = None
    reached_revision: int = 0  # the newest revision that the site says it runs
    started_s: float | None = None
    ended_s: float | None = None
    message: str = ""
    output: str = ""
    endpoint: str = ""
    progress: Progress = Progress()
    rescales: tuple[RescaleRecord, ...] = ()
    steps_lost: int = 0
    losses_by_reclaim: int = 0  # never counted against the job's own retries
    site: str = ""  # where its workers are or last were; empty before its first assignment
    priority: int = 0  # each step doubles what its work counts
    deadline_s: float | None = None  # its user wants it done by then
    budget_device_s: float | None = None  # device-seconds that it may use in all
    kind_curves: tuple[KindCurve, ...] = ()  # what was measured, by kind of device, sorted
    turned_s: float = 0.0  # when it last got its first, or lost its last worker; else when it was submitted
    waited_s: float = 0.0  # how long it had waited when it last got its first worker
    stalled_until_s: float = 0.0  # until when its newest rescale should have it stand still, by its costs
    wanted: tuple[
        tuple[Role, int], ...
    ] = ()  # workers of a role that it could use now; of others, all that it may have

    @property
    def min_width(self) -> int:
        """Fewest workers that the job runs with."""
        return sum(need.min for need in self.needs)

    @property
    def max_width(self) -> int:
        """Most workers that it can use."""
        return sum(need.max for need in self.needs)

    @property
    def is_asleep(self) -> bool:
        """Whether it can do without any worker for now."""
        return any(count == 0 for _, count in self.wanted)

    @property
    def useful_needs(self) -> tuple[RoleNeed, ...]:
        """Its needs, with no more than it could use now."""
        wanted = dict(self.wanted)
        return tuple(replace(n, max=min(n.max, max(n.min, wanted.get(n.role, n.max)))) for n in self.needs)

    @property
    def useful_width(self) -> int:
        """Most workers that it could use now."""
        return 0 if self.is_asleep else sum(need.max for need in self.useful_needs)

    @property
    def width(self) -> int:
        """How many workers it is assigned now."""
        return self.assignment.width if self.assignment else 0

    @property
    def assignment_revision(self) -> int:
        """The newest revision, 0 before the first."""
        return self.assignment.revision if self.assignment else 0


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the scheduler knows it."""

    id: str
    job: str
    role: Role
    lease: LeaseKey
    devices: tuple[str, ...]
    state: WorkerState
    since_s: float

    @property
    def is_live(self) -> bool:
        """Whether it still holds its devices."""
        return self.state not in (WorkerState.ENDED, WorkerState.LOST)

"""What the planner is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.domain.cluster import Lease, LeaseKey
from scheduler.domain.jobs import Assignment, Job, Worker
from scheduler.domain.reasons import Reason


@dataclass(frozen=True, slots=True)
class Withheld:
    """A job that its site refused: not tried again before `until_s`."""

    job: str
    reason: Reason
    until_s: float


@dataclass(frozen=True, slots=True)
class Factors:
    """By how much a lease's surroundings multiply its hazard by age; what is left out has no effect."""

    cohort: Mapping[str, float] = field(default_factory=dict)
    neighbourhood: Mapping[str, float] = field(default_factory=dict)  # by name, see `planning.surroundings`
    hour: tuple[float, ...] = ()  # of each hour of the day


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a site's past says of what is to come."""

    site: str
    gap_s: float  # mean time between changes of its nodes
    hazard_per_s: tuple[float, ...] = ()  # of a lease's end, for each range of ages (see `planning.forecast`)
    factors: Factors = Factors()


@dataclass(frozen=True, slots=True)
class Usage:
    """Device-seconds of late, the older the less they count."""

    user: str
    device_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a plan may depend on. `version` grows with every change of the inventory."""

    version: int
    now_s: float
    leases: tuple[Lease, ...]  # live ones, sorted by key
    jobs: tuple[Job, ...]  # live ones, sorted by id
    connected_sites: tuple[str, ...]  # sorted; nothing is placed at a site that is away
    workers: tuple[Worker, ...] = ()  # live ones, sorted by id; those of them that are leaving still hold their devices
    suspect: tuple[LeaseKey, ...] = ()  # sorted; their agents' streams broke: nothing new is placed there
    withheld: tuple[Withheld, ...] = ()  # sorted by job
    outlooks: tuple[Outlook, ...] = ()  # sorted by site; none for a site of which nothing is known
    usages: tuple[Usage, ...] = ()  # sorted by user
    spent: tuple[tuple[str, float], ...] = ()  # (job, device-seconds), of jobs with a budget, sorted
    expert_loads: tuple[tuple[str, tuple[float, ...]], ...] = ()  # (job, tokens of late of each expert), sorted


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a job this set of workers (none: park it)."""

    assignment: Assignment
    cause: str  # "start", "grow", "shrink", "reclaim", "loss", "move"
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """A draining lease carries no worker any more: its agent may stop the raylet."""

    lease: LeaseKey
    cause: str


Step = Assign | Release


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A job that does not run, or not at its full width, and why."""

    job: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Plan:
    """A proposal made of `snapshot_version`; commit keeps what still fits."""

    snapshot_version: int
    steps: tuple[Step, ...]
    unplaced: tuple[Unplaced, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A step that commit would not apply, and why."""

    step: Step
    reason: Reason

"""What must be told to agents and sites once the changes behind it are saved. Each is one call of the executor port."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.domain.cluster import Lease, LeaseKey, Site
from scheduler.domain.jobs import Job
from scheduler.domain.plan import Assign


@dataclass(frozen=True, slots=True)
class Grant:
    """`Executor.grant`."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Join:
    """`Executor.join`."""

    lease: Lease
    site: Site


@dataclass(frozen=True, slots=True)
class SendAssignment:
    """`Executor.assign`."""

    job: Job
    step: Assign
    leases: tuple[Lease, ...]
    lost_workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class End:
    """`Executor.end`."""

    job: Job
    cause: str


@dataclass(frozen=True, slots=True)
class Leave:
    """`Executor.leave`."""

    lease: Lease
    cause: str


@dataclass(frozen=True, slots=True)
class AskReclaim:
    """`Executor.reclaim`."""

    lease: Lease
    grace_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class Forget:
    """`Executor.forget`."""

    key: LeaseKey
    site: str


Effect = Grant | Join | SendAssignment | End | Leave | AskReclaim | Forget

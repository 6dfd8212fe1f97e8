"""The seam between a site's session and the jobs that run there: one controller a job, told what it is to be.

The session turns `SiteCommand` messages into these calls and everything that a controller says into `SiteMessage`s.
A controller owns the job's Ray actors. It brings them to the assignment in its own time, on the site's event loop,
and says so; it never talks to the scheduler itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from protocol.jobspec import JobSpec

ExpertId = tuple[int, int]
"""(layer, expert)"""


@dataclass(frozen=True, slots=True, order=True)
class LeaseKey:
    """A node and the epoch that fences what is done under this lease of it."""

    node: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.node}/{self.epoch}"


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """One worker that a job is to have, and where."""

    worker: str  # stable for the worker's whole life; also the name of its Ray actor
    role: str  # "trainer", "engine", "shard", "runner"
    lease: LeaseKey
    devices: tuple[str, ...]
    experts: tuple[ExpertId, ...] = ()
    address: str = "127.0.0.1"  # where other workers reach this node
    cohort: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The whole set of workers that a job is to have; idempotent by revision."""

    job: str
    revision: int
    workers: tuple[WorkerSlot, ...]
    cause: str
    deadline_s: float | None = None  # Unix time by which workers that are no longer in it must be gone
    lost_workers: tuple[str, ...] = ()
    spec: JobSpec = field(repr=False, kw_only=True)


class Reports(Protocol):
    """What a controller says. Every call returns at once; the session delivers in order, across reconnects."""

    def reached(
        self, assignment: Assignment, stall_s: float, bytes_moved: int = 0, at_step: int = 0, cause: str = ""
    ) -> None:
        """The job runs as `assignment` says."""

    def refused(self, assignment: Assignment, code: str, message: str, remedy: str) -> None:
        """The assignment cannot be carried out."""

    def worker(self, job: str, slot: WorkerSlot, state: str, detail: str = "") -> None:
        """A worker is "starting", "running", "left" or "lost"; or "slow", and runs on."""

    def progress(
        self,
        job: str,
        step: int,
        total: int,
        rate: float,
        rate_unit: str,
        width: int,
        loss: float = 0.0,
        metrics: dict[str, float] | None = None,
        wanted: Mapping[str, int] | None = None,
    ) -> None:
        """How far the job is and how fast it goes; `wanted`: workers of a role that it could use now."""

    def expert_loads(self, job: str, tokens: list[int]) -> None:
        """How many tokens each expert of a served model got since this was last said, layer by layer."""

    def work_lost(self, job: str, steps: int, seconds: float, cause: str) -> None:
        """Steps that must be done again."""

    def ended(self, job: str, outcome: str, message: str = "", output: str = "") -> None:
        """The job is over: "done", "failed" or "cancelled". Its workers are gone."""

    def endpoint(self, job: str, url: str) -> None:
        """Where the served model answers."""

    def log(self, job: str, worker: str, lines: list[str]) -> None:
        """Lines that a worker wrote."""


class Actors(Protocol):
    """Starts and stops Ray actors on exact nodes. `runtime.site.ray_actors` is the one that speaks to Ray."""

    async def start(self, slot: WorkerSlot, actor_class: type, *args: object, **kwargs: object) -> object:
        """A handle to a detached actor named after the worker, running on the slot's node.

        Finds it again if it already runs (after a restart of the site). Raises `NodeMissing` if the lease's raylet
        is not there.
        """

    async def start_on_head(self, name: str, actor_class: type, *args: object, **kwargs: object) -> object:
        """A detached actor beside the Ray head, for what must not leave with any node (a model's endpoint)."""

    async def stop(self, name: str) -> None:
        """End the actor at once; nothing happens if there is none."""


class NodeMissing(Exception):
    """No live raylet carries the lease's label."""


class JobController(Protocol):
    """Runs one job. All calls come from the site's event loop, one at a time."""

    async def assign(self, assignment: Assignment) -> None:
        """Take up a newer assignment. Returns at once; the change happens in the background."""

    async def node_gone(self, lease: LeaseKey) -> None:
        """The lease's raylet died: its workers are lost."""

    async def end(self, cause: str) -> None:
        """End the job and all of its workers, then report `ended`."""

    async def detach(self) -> None:
        """The site process stops, the job's actors go on: let go of tasks and connections."""

"""Which state may follow which, and why. An unlisted pair is a bug, and raises with the entity's story."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from scheduler.domain.cluster import LeaseState, NodeState
from scheduler.domain.jobs import JobState, WorkerState

State = TypeVar("State", bound=StrEnum)
Table = Mapping[tuple[State, State], str]

NODE: Table[NodeState] = {
    (NodeState.BUSY, NodeState.SPARE): "its agent judges devices spare",
    (NodeState.BUSY, NodeState.SUSPECT): "its agent's stream broke",
    (NodeState.SPARE, NodeState.BUSY): "its owner uses it again",
    (NodeState.SPARE, NodeState.LENT): "a lease was opened",
    (NodeState.SPARE, NodeState.SUSPECT): "its agent's stream broke",
    (NodeState.LENT, NodeState.DRAINING): "its lease is to be empty by a deadline",
    (NodeState.LENT, NodeState.BUSY): "its lease ended; the next report says whose it is",
    (NodeState.LENT, NodeState.SUSPECT): "its agent's stream broke",
    (NodeState.DRAINING, NodeState.BUSY): "nothing of ours is left on it",
    (NodeState.DRAINING, NodeState.SUSPECT): "its agent's stream broke",
    (NodeState.SUSPECT, NodeState.BUSY): "its agent is back without a lease",
    (NodeState.SUSPECT, NodeState.LENT): "its agent is back with its lease",
    (NodeState.SUSPECT, NodeState.DRAINING): "its agent is back with its lease, which drains",
    (NodeState.SUSPECT, NodeState.LOST): "its agent did not come back in time, or the site saw it die",
    (NodeState.LOST, NodeState.BUSY): "its agent is back",
}

LEASE: Table[LeaseState] = {
    (LeaseState.GRANTED, LeaseState.JOINING): "the site is there, and the agent was told to join it",
    (LeaseState.GRANTED, LeaseState.DRAINING): "reclaimed before it joined",
    (LeaseState.GRANTED, LeaseState.ENDED): "its node left before it joined",
    (LeaseState.JOINING, LeaseState.READY): "the site sees its raylet",
    (LeaseState.JOINING, LeaseState.DRAINING): "reclaimed while joining, or its raylet cannot start",
    (LeaseState.JOINING, LeaseState.ENDED): "its node left while joining",
    (LeaseState.READY, LeaseState.JOINING): "the site's Ray cluster was started anew",
    (LeaseState.READY, LeaseState.DRAINING): "reclaimed, expired, drained by an operator, or its raylet died",
    (LeaseState.READY, LeaseState.ENDED): "its node was lost or left",
    (LeaseState.DRAINING, LeaseState.ENDED): "its node is free, or was lost",
}

JOB: Table[JobState] = {
    (JobState.QUEUED, JobState.STARTING): "it got its first workers",
    (JobState.QUEUED, JobState.ENDING): "cancelled after its site had heard of it",
    (JobState.QUEUED, JobState.FAILED): "its site gave it up",
    (JobState.QUEUED, JobState.CANCELLED): "cancelled before it had workers",
    (JobState.STARTING, JobState.RUNNING): "its site says that it runs as assigned",
    (JobState.STARTING, JobState.QUEUED): "lost its workers before it first ran",
    (JobState.STARTING, JobState.PARKED): "lost its workers before it ran again",
    (JobState.STARTING, JobState.ENDING): "cancelled",
    (JobState.STARTING, JobState.DONE): "its site says that it is done",
    (JobState.STARTING, JobState.FAILED): "its site says that it failed",
    (JobState.STARTING, JobState.CANCELLED): "its site says that it ended",
    (JobState.RUNNING, JobState.PARKED): "too few nodes are left for its minimum, or it has nothing to do",
    (JobState.RUNNING, JobState.ENDING): "cancelled",
    (JobState.RUNNING, JobState.DONE): "its site says that it is done",
    (JobState.RUNNING, JobState.FAILED): "its site says that it failed",
    (JobState.RUNNING, JobState.CANCELLED): "its site says that it ended",
    (JobState.PARKED, JobState.STARTING): "there are nodes for it again",
    (JobState.PARKED, JobState.ENDING): "cancelled",
    (JobState.PARKED, JobState.DONE): "it was done before it could be parked",
    (JobState.PARKED, JobState.FAILED): "its site says that it failed",
    (JobState.PARKED, JobState.CANCELLED): "its site says that it ended",
    (JobState.ENDING, JobState.DONE): "it was done before it could be cancelled",
    (JobState.ENDING, JobState.FAILED): "it failed before it could be cancelled",
    (JobState.ENDING, JobState.CANCELLED): "its site confirms the end",
}

WORKER: Table[WorkerState] = {
    (WorkerState.STARTING, WorkerState.RUNNING): "its site says that it runs",
    (WorkerState.STARTING, WorkerState.LEAVING): "no longer in its job's assignment",
    (WorkerState.STARTING, WorkerState.ENDED): "its job ended",
    (WorkerState.STARTING, WorkerState.LOST): "it or its node died",
    (WorkerState.RUNNING, WorkerState.LEAVING): "no longer in its job's assignment",
    (WorkerState.RUNNING, WorkerState.ENDED): "it left by itself, or its job ended",
    (WorkerState.RUNNING, WorkerState.LOST): "it or its node died",
    (WorkerState.LEAVING, WorkerState.ENDED): "it left",
    (WorkerState.LEAVING, WorkerState.LOST): "it or its node died before it could leave",
}


class IllegalTransition(Exception):
    """A state change that no table lists; `story` holds the entity's last log lines."""

    def __init__(self, entity: str, old: StrEnum, new: StrEnum, story: tuple[str, ...]) -> None:
        self.story = story
        lines = "".join(f"\n  {line}" for line in story) or "\n  (nothing is known of it)"
        super().__init__(f"{entity} cannot go from {old} to {new}. What happened to it:{lines}")


def require(table: Table[State], entity: str, old: State, new: State, story: tuple[str, ...] = ()) -> str:
    """Why `entity` may go from `old` to `new`. Raises `IllegalTransition` if the table does not list it."""
    why = table.get((old, new))
    if why is None:
        raise IllegalTransition(entity, old, new, story)
    return why


def render_tables() -> str:
    """The four tables as markdown, for docs/ARCHITECTURE.md."""
    return "\n".join(
        [*_rendered("Node", NODE), *_rendered("Lease", LEASE), *_rendered("Job", JOB), *_rendered("Worker", WORKER)]
    )


def _rendered(title: str, table: Table[State]) -> list[str]:
    rows = [f"| {old} | {new} | {why} |" for (old, new), why in table.items()]
    return [f"### {title}", "", "| from | to | because |", "|---|---|---|", *rows, ""]

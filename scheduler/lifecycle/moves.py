"""Changes of state. Nothing else in the scheduler writes a `state` field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from scheduler.domain.changing import changed
from scheduler.domain.cluster import Lease, LeaseState, Node, NodeState
from scheduler.domain.jobs import Job, JobState, Worker, WorkerState
from scheduler.lifecycle import tables

Entity = TypeVar("Entity", Node, Lease, Job, Worker)
AnyState = NodeState | LeaseState | JobState | WorkerState

Story = Callable[[], tuple[str, ...]]
"""Gives the story, if it comes to that."""

_NAMES = {Node: "node", Job: "job", Worker: "worker"}

_TABLES: Mapping[type, Mapping[tuple[Any, Any], str]] = {
    Node: tables.NODE,
    Lease: tables.LEASE,
    Job: tables.JOB,
    Worker: tables.WORKER,
}


def move(entity: Entity, to: AnyState, story: tuple[str, ...] | Story = (), **fields: Any) -> Entity:
    """The entity in state `to`, with `fields` changed too. Raises `IllegalTransition`, which tells `story`."""
    table = _TABLES[type(entity)]
    if (entity.state, to) not in table:
        told = story() if callable(story) else story
        tables.require(table, name_of(entity), entity.state, to, told)
    return changed(entity, **fields, state=to)


def name_of(entity: Node | Lease | Job | Worker) -> str:
    """What people call it: "lease n1/7", "job job-3"."""
    if isinstance(entity, Lease):
        return f"lease {entity.key.node}/{entity.key.epoch}"
    return f"{_NAMES[type(entity)]} {entity.id}"

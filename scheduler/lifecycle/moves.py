"""Changes of state. Nothing else in the scheduler writes a `state` field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from scheduler.domain.cluster import Lease, LeaseState, Node, NodeState
from scheduler.domain.jobs import Job, JobState, Worker, WorkerState
from scheduler.lifecycle import tables

Entity = TypeVar("Entity", Node, Lease, Job, Worker)
AnyState = NodeState | LeaseState | JobState | WorkerState

_TABLES: Mapping[type, Mapping[tuple[Any, Any], str]] = {
    Node: tables.NODE,
    Lease: tables.LEASE,
    Job: tables.JOB,
    Worker: tables.WORKER,
}


def move(entity: Entity, to: AnyState, story: tuple[str, ...] = (), **fields: Any) -> Entity:
    """The entity in state `to`, with `fields` changed too. Raises `IllegalTransition`, which tells `story`."""
    tables.require(_TABLES[type(entity)], name_of(entity), entity.state, to, story)
    changed: dict[str, Any] = {**fields, "state": to}
    return replace(entity, **changed)


def name_of(entity: Node | Lease | Job | Worker) -> str:
    """What people call it: "lease n1/7", "job job-3"."""
    key = entity.key if isinstance(entity, Lease) else entity.id
    return f"{type(entity).__name__.lower()} {key}"

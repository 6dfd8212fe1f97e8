"""What one turn of the loop changed, and what a restarted scheduler starts from."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.domain.cluster import Lease, Node, ReclaimRecord
from scheduler.domain.jobs import Job, Worker
from scheduler.domain.ledger import Account


@dataclass(frozen=True, slots=True)
class LogRow:
    """One line of the event log. `cause_id` is the id of the stimulus; rows of one stimulus share it."""

    sequence: int
    at_s: float
    kind: str  # "node_reported", "assign", "step_rejected", ...
    message: str  # for a person
    cause_id: str
    job: str = ""
    node: str = ""
    site: str = ""
    data_json: str = "{}"


@dataclass(frozen=True, slots=True)
class Changes:
    """Everything that one turn of the loop changed. Saved whole or not at all."""

    nodes: tuple[Node, ...] = ()
    leases: tuple[Lease, ...] = ()
    jobs: tuple[Job, ...] = ()
    workers: tuple[Worker, ...] = ()
    requests: tuple[tuple[str, str], ...] = ()  # (request id, job id)
    accounts: tuple[Account, ...] = ()
    reclaims: tuple[ReclaimRecord, ...] = ()
    log: tuple[LogRow, ...] = ()
    last_epoch: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to save."""
        return self == Changes()


@dataclass(frozen=True, slots=True)
class Saved:
    """What a restarted scheduler starts from: live leases and workers, every job, the books, the newest numbers."""

    nodes: tuple[Node, ...] = ()
    leases: tuple[Lease, ...] = ()
    jobs: tuple[Job, ...] = ()
    workers: tuple[Worker, ...] = ()
    requests: tuple[tuple[str, str], ...] = ()
    accounts: tuple[Account, ...] = ()
    reclaims: tuple[ReclaimRecord, ...] = ()
    last_epoch: int = 0
    last_sequence: int = 0
    ended: tuple[Lease, ...] = ()  # that ended lately, oldest first: what is known of how long leases last

"""What the control loop needs of a store: load everything once, then save each batch of changes in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


class Store(Protocol):
    """Blocking; the live loop calls it on a thread of its own. Raises OSError-like errors when the disk is full."""

    def load(self) -> Saved:
        """Everything that was saved."""

    def save(self, changes: Changes) -> None:
        """Keep the changes in one transaction; durable when this returns."""

    def log_after(self, sequence: int, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """Log rows with a greater sequence, oldest first; of one job if given."""

    def log_tail(self, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """The newest log rows, oldest first; of one job if given."""


class MemoryStore:
    """A store that forgets at the end of the process: for simulation and tests of pure parts."""

    def __init__(self) -> None:
        self.rows: list[LogRow] = []

    def load(self) -> Saved:
        """Nothing: it was never here before."""
        return Saved()

    def save(self, changes: Changes) -> None:
        """Keep the log rows."""
        self.rows.extend(changes.log)

    def log_after(self, sequence: int, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """See `Store`."""
        return tuple(r for r in self.rows if r.sequence > sequence and job in ("", r.job))[:limit]

    def log_tail(self, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """See `Store`."""
        return tuple(r for r in self.rows if job in ("", r.job))[-limit:]

"""What the control loop needs of a store: load everything once, then save each batch of changes in one transaction."""

from __future__ import annotations

from typing import Protocol

from scheduler.domain.changes import Changes, LogRow, Saved

__all__ = ["Changes", "LogRow", "MemoryStore", "Saved", "Store"]


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

"""The store of a replay: counts what would be saved, and keeps nothing."""

from __future__ import annotations

from scheduler.domain.changes import Changes, LogRow, Saved


class ForgetfulStore:
    """See `scheduler.store.port.Store`."""

    def __init__(self) -> None:
        self.rows = 0

    def load(self) -> Saved:
        """Nothing: it was never here before."""
        return Saved()

    def save(self, changes: Changes) -> None:
        """Count the log rows."""
        self.rows += len(changes.log)

    def log_after(self, sequence: int, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """Nothing was kept."""
        return ()

    def log_tail(self, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """Nothing was kept."""
        return ()

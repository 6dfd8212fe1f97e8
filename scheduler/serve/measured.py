"""The loop's planner and store with a clock beside them: what they do is not changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram

from scheduler.control_loop import Planner
from scheduler.domain.changes import Changes, LogRow, Saved
from scheduler.domain.plan import Plan, Snapshot
from scheduler.domain.reasons import Refused
from scheduler.store.port import Store

_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def measured_planner(planner: Planner, registry: CollectorRegistry) -> Planner:
    """The planner, with how long each plan takes."""
    seconds = Histogram("fallow_plan_seconds", "Time to make a plan.", buckets=_BUCKETS_S, registry=registry)

    def plan(snapshot: Snapshot) -> Plan:
        with seconds.time():
            return planner(snapshot)

    return plan


class MeasuredStore:
    """Implements `Store`: counts log rows by kind, times saves, and says when the database was taken over."""

    def __init__(self, store: Store, registry: CollectorRegistry, taken_over: Callable[[Refused], None]) -> None:
        self._store = store
        self._taken_over = taken_over
        self._seconds = Histogram(
            "fallow_save_seconds", "Time to save what one turn changed.", buckets=_BUCKETS_S, registry=registry
        )
        self.events: Counter[str] = Counter()

    def load(self) -> Saved:
        """See `Store`."""
        return self._store.load()

    def save(self, changes: Changes) -> None:
        """See `Store`."""
        try:
            with self._seconds.time():
                self._store.save(changes)
        except Refused as refused:
            self._taken_over(refused)
            raise
        self.events.update(row.kind for row in changes.log)

    def log_after(self, sequence: int, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """See `Store`."""
        return self._store.log_after(sequence, limit, job)

    def log_tail(self, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """See `Store`."""
        return self._store.log_tail(limit, job)

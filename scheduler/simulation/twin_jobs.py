"""What the twin keeps of one job: its workers, and how far its work is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.domain.cluster import LeaseKey
from scheduler.domain.plan import Assign


def _one_each(width: int) -> float:
    return float(width)


@dataclass(frozen=True, slots=True)
class Work:
    """A job's work: `total` samples (None: endless) at `rate(width)` samples a second."""

    total: float | None = None
    rate: Callable[[int], float] = _one_each


@dataclass(slots=True)
class JobTwin:
    """One job at its site. `workers` run or start; `leaving` go when the next revision is reached."""

    id: str
    site: str
    work: Work
    revision: int = 0
    workers: dict[str, LeaseKey] = field(default_factory=dict)
    coming: set[str] = field(default_factory=set)
    leaving: dict[str, LeaseKey] = field(default_factory=dict)
    done: float = 0.0
    running_since_s: float | None = None  # None while it stands still
    is_stalled: bool = False  # it will reach its newest revision
    stalled_s: float = 0.0
    last_stall_s: float = 0.0
    last_cause: str = ""
    outcome: str = ""

    @property
    def is_steady(self) -> bool:
        """Whether it runs as its newest revision says, or is parked."""
        return self.revision > 0 and not self.is_stalled

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return bool(self.outcome)

    def take_up(self, step: Assign, now_s: float, missing: set[str]) -> tuple[bool, bool]:
        """A newer revision; `missing` of its workers have no node any more. Whether it gains, and changes, workers."""
        self.pause(now_s)
        before = self.workers
        wanted = {slot.worker: slot.lease for slot in step.assignment.workers if slot.worker not in missing}
        self.leaving |= {worker: lease for worker, lease in self.workers.items() if worker not in wanted}
        gained = wanted.keys() - self.workers.keys()
        self.coming = (self.coming & wanted.keys()) | gained
        self.workers, self.revision = wanted, step.assignment.revision
        return bool(gained), wanted != before

    def pause(self, now_s: float) -> None:
        """Stand still, with the work done so far counted."""
        if self.running_since_s is not None:
            self.done += (now_s - self.running_since_s) * self.work.rate(len(self.workers))
            self.running_since_s = None

    def reach(self, now_s: float) -> tuple[list[tuple[str, LeaseKey]], list[tuple[str, LeaseKey]]]:
        """Run as the revision says. Who came up and who left, sorted."""
        came = [(worker, self.workers[worker]) for worker in sorted(self.coming)]
        left = sorted(self.leaving.items())
        self.coming, self.leaving, self.is_stalled = set(), {}, False
        self.running_since_s = now_s if self.workers else None
        return came, left

    def lose(self, key: LeaseKey, now_s: float) -> list[str]:
        """Workers on a lease die. Who, sorted."""
        lost = sorted(worker for worker, lease in (self.workers | self.leaving).items() if lease == key)
        for worker in lost:
            self.drop(worker, now_s)
        return lost

    def drop(self, worker: str, now_s: float) -> None:
        """One worker is no more."""
        self.pause(now_s)
        self.workers.pop(worker, None)
        self.leaving.pop(worker, None)
        self.coming.discard(worker)

    def remaining_s(self) -> float | None:
        """Seconds until the work is done at the present width; None if it never is."""
        if self.work.total is None or self.running_since_s is None:
            return None
        return max(0.0, self.work.total - self.done) / self.work.rate(len(self.workers))

    def finish(self, outcome: str, now_s: float) -> None:
        """The job is over."""
        self.pause(now_s)
        self.outcome = outcome
        self.workers, self.leaving, self.coming, self.is_stalled = {}, {}, set(), False

"""What the executor contract needs of a home: nodes to lend, accidents to cause, and a way to wait for events.

A home of the executor port implements `Harness` and gives it as the fixture `harness` to a subclass of
`tests.contract.executor_contract.ExecutorContract`. Waiting may take real time (Ray) or none (the twin, a trace).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from scheduler.clock import ManualClock
from scheduler.domain import events
from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState, Site
from scheduler.domain.jobs import Job
from scheduler.executor import Executor

E = TypeVar("E", bound=events.Event)


class Harness(ABC):
    """One connected site whose agents and site process answer the executor. `events` holds all they have said."""

    executor: Executor
    site: Site
    events: list[events.Event]

    @abstractmethod
    def new_leases(self, count: int) -> Sequence[Lease]:
        """GRANTED leases of connected agents on different nodes, one device each; nothing has been told to them yet."""

    @abstractmethod
    def new_job(self, min_width: int, max_width: int) -> Job:
        """A queued job that this home can run until it is told to end: a task or training job of a known site."""

    @abstractmethod
    def kill(self, lease: Lease) -> None:
        """The lease's node dies without a word, with all that runs there. In a trace: its owner takes it."""

    @abstractmethod
    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Let things happen until the condition holds. False if it does not within this home's patience."""

    def expect(self, kind: type[E], where: Callable[[E], bool] = lambda event: True) -> E:
        """The first such event, waited for. Fails the test if none comes."""
        self.wait_until(lambda: any(isinstance(e, kind) and where(e) for e in self.events))
        found = [e for e in self.events if isinstance(e, kind) and where(e)]
        assert found, f"no such {kind.__name__} among {[type(e).__name__ for e in self.events]}"
        return found[0]

    def seen(self, kind: type[E]) -> list[E]:
        """All events of a kind so far, in order."""
        return [event for event in self.events if isinstance(event, kind)]


class PlayedHarness(Harness):
    """A home on a manual clock: waiting is playing one instant after the other."""

    PATIENCE_S = 60.0

    def __init__(self, site: str) -> None:
        self.clock = ManualClock()
        self.events = []
        self.site = Site(site, connected=True)
        self._count = 0

    @abstractmethod
    def lend(self, node: str) -> tuple[Device, ...]:
        """A new node's owner lends it; its devices."""

    @abstractmethod
    def next_s(self) -> float | None:
        """The next instant at which something happens."""

    @abstractmethod
    def play(self, at_s: float) -> None:
        """What happens at this instant."""

    def new_leases(self, count: int) -> Sequence[Lease]:
        """See `Harness`."""
        return [self._new_lease() for _ in range(count)]

    def _new_lease(self) -> Lease:
        self._count += 1
        key = LeaseKey(f"n{self._count}", self._count)
        devices = self.lend(key.node)
        return Lease(key, self.site.id, LeaseState.GRANTED, devices, key.node, self.clock.now_s(), "c")

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """See `Harness`."""
        end_s = self.clock.now_s() + self.PATIENCE_S
        while not condition():
            at_s = self.next_s()
            if at_s is None or at_s > end_s:
                return False
            self.clock.advance_to(at_s)
            self.play(at_s)
        return True

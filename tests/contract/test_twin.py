"""The executor contract, kept by the in-process twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from scheduler.clock import ManualClock
from scheduler.domain import events
from scheduler.domain.cluster import Lease, LeaseKey, LeaseState, Site
from scheduler.domain.jobs import Job, JobKind, JobState, Role, RoleNeed
from scheduler.simulation.executor import TwinExecutor
from tests.contract.executor_contract import AccidentContract
from tests.contract.harness import Harness
from tests.scheduler.world import devices

PATIENCE_S = 60.0


class TwinHarness(Harness):
    """The twin on a manual clock: waiting is moving the clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.events: list[events.Event] = []
        self.executor = TwinExecutor(self.clock, self.events.append, warmup_s=2.0)
        self.site = Site("s", connected=True)
        self.executor.open_site("s")
        self._count = 0

    def new_leases(self, count: int) -> Sequence[Lease]:
        return [self._new_lease() for _ in range(count)]

    def _new_lease(self) -> Lease:
        self._count += 1
        node = f"n{self._count}"
        self.executor.add_node(node, "s", devices(1))
        self.executor.owner_lends(node)
        key = LeaseKey(node, self._count)
        return Lease(key, "s", LeaseState.GRANTED, devices(1), node, self.clock.now_s(), "c")

    def new_job(self, min_width: int, max_width: int) -> Job:
        need = RoleNeed(Role.TRAINER, min_width, max_width)
        return Job("job-000001", "j", JobKind.TRAIN, "ada", JobState.QUEUED, 0.0, "{}", (need,), site="s")

    def kill(self, lease: Lease) -> None:
        self.executor.kill(lease.key.node)

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        end_s = self.clock.now_s() + PATIENCE_S
        while not condition():
            next_s = self.executor.next_s()
            if next_s is None or next_s > end_s:
                return False
            self.clock.advance_to(next_s)
            self.executor.play(next_s)
        return True


class TestTwin(AccidentContract):
    @pytest.fixture
    def harness(self) -> Harness:
        return TwinHarness()

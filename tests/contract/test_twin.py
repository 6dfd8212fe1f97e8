"""The executor contract, kept by the in-process twin."""

from __future__ import annotations

import pytest

from scheduler.domain.cluster import Device, Lease
from scheduler.domain.jobs import Job, JobKind, JobState, Role, RoleNeed
from scheduler.simulation.executor import TwinExecutor
from tests.contract.executor_contract import AccidentContract
from tests.contract.harness import Harness, PlayedHarness
from tests.scheduler.world import devices


class TwinHarness(PlayedHarness):
    """The twin."""

    def __init__(self) -> None:
        super().__init__("s")
        self.executor = self._twin = TwinExecutor(self.clock, self.events.append, warmup_s=2.0)
        self._twin.open_site("s")

    def lend(self, node: str) -> tuple[Device, ...]:
        self._twin.add_node(node, "s", devices(1))
        self._twin.owner_lends(node)
        return devices(1)

    def new_job(self, min_width: int, max_width: int) -> Job:
        need = RoleNeed(Role.TRAINER, min_width, max_width)
        return Job("job-000001", "j", JobKind.TRAIN, "ada", JobState.QUEUED, 0.0, "{}", (need,), site="s")

    def kill(self, lease: Lease) -> None:
        self._twin.kill(lease.key.node)

    def next_s(self) -> float | None:
        return self._twin.next_s()

    def play(self, at_s: float) -> None:
        self._twin.play(at_s)


class TestTwin(AccidentContract):
    @pytest.fixture
    def harness(self) -> Harness:
        return TwinHarness()

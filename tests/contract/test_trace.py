"""The executor contract, kept by the executor of a replay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scheduler.domain import events
from scheduler.domain.cluster import Device, Lease
from scheduler.domain.jobs import Job, JobKind, JobState, Role, RoleNeed
from scheduler.simulation.job_clock import JobClock, Physics
from scheduler.simulation.job_mix import MixJob
from scheduler.simulation.trace_executor import DEVICES, TraceExecutor
from tests.contract.executor_contract import ExecutorContract, assign, join_all
from tests.contract.harness import Harness, PlayedHarness


class TraceHarness(PlayedHarness):
    """A trace whose nodes are idle when they are asked for. An instant is ended before the next."""

    def __init__(self) -> None:
        super().__init__("trace")
        self.executor = self._trace = TraceExecutor(self.clock, self.events.append)
        self._trace.open_site("trace")

    def lend(self, node: str) -> tuple[Device, ...]:
        self._trace.lend(node, "trace", 0.0)
        return DEVICES

    def new_job(self, min_width: int, max_width: int) -> Job:
        need = RoleNeed(Role.TRAINER, min_width, max_width)
        curve = ((1, 1.0), (max_width, float(max_width)))
        mix_job = MixJob("job-000001", min_width, max_width, curve, None, 2.0, 1.0, 0.0)
        self._trace.add_job(mix_job.id, JobClock(mix_job, Physics(warmup_s=2.0)))
        return Job(mix_job.id, "j", JobKind.TRAIN, "ada", JobState.QUEUED, 0.0, "{}", (need,), site="trace")

    def kill(self, lease: Lease) -> None:
        self._trace.take_back(lease.key.node, 0.0)

    def next_s(self) -> float | None:
        return self._trace.next_s()

    def play(self, at_s: float) -> None:
        self._trace.play(at_s)
        self._trace.close()

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        self._trace.close()
        return super().wait_until(condition)


class TestTrace(ExecutorContract):
    @pytest.fixture
    def harness(self) -> Harness:
        return TraceHarness()

    def test_a_node_that_its_owner_takes_is_left_with_a_kill_and_the_rest_goes_on(self, harness: Harness) -> None:
        leases = join_all(harness, 2)
        job = assign(harness, harness.new_job(1, 3), 1, leases, "start")
        assert job.assignment
        harness.kill(leases[1])
        left = harness.expect(events.NodeLeft, lambda e: e.lease == leases[1].key)
        assert (left.cause, left.killed) == ("reclaimed", 1)
        harness.executor.forget(leases[1].key, harness.site.id)
        lost = (job.assignment.workers[1].worker,)
        job = assign(harness, job, 2, leases[:1], "loss", job.assignment.workers, lost=lost)
        again = assign(harness, job, 3, join_all(harness, 1), "move")
        assert again.width == 1

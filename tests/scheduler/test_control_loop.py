"""The loop as services meet it: durable answers, nothing sent before it is saved, slow readers cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from scheduler import control_loop
from scheduler.clock import SystemClock
from scheduler.control_loop import ControlLoop
from scheduler.domain import events
from scheduler.domain.cluster import LeaseState
from scheduler.domain.jobs import JobState, Role, RoleNeed
from scheduler.domain.reasons import Refused
from scheduler.inventory import Inventory
from scheduler.simulation.executor import TwinExecutor
from tests.scheduler.world import DurableStore, World, devices, submit_event

TWO_TO_FOUR = (RoleNeed(Role.TRAINER, 2, 4),)


@contextlib.asynccontextmanager
async def running(store: DurableStore) -> AsyncIterator[ControlLoop]:
    clock = SystemClock()
    posts: list[ControlLoop] = []
    twin = TwinExecutor(clock, lambda event: posts[0].post(event))
    loop = ControlLoop(Inventory.restore(store.load()), store, twin, clock)
    posts.append(loop)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --- live --------------------------------------------------------------------------------------------------------


async def test_a_submit_is_durable_when_it_returns_and_a_repeat_finds_it() -> None:
    store = DurableStore()
    async with running(store) as loop:
        first = await loop.submit(submit_event(loop.new_job_id(), request_id="once"))
        assert first[0] in store.jobs
        again = await loop.submit(submit_event(loop.new_job_id(), request_id="once"))
    assert first == ("job-000001", False)
    assert again == ("job-000001", True)
    async with running(store) as loop:
        assert await loop.submit(submit_event(loop.new_job_id(), request_id="once")) == ("job-000001", True)
        assert loop.new_job_id() > "job-000001"


async def test_a_request_id_of_another_user_is_refused() -> None:
    async with running(DurableStore()) as loop:
        await loop.submit(submit_event(loop.new_job_id(), request_id="once"))
        with pytest.raises(Refused, match="another user's"):
            await loop.submit(submit_event(loop.new_job_id(), request_id="once", user="eve"))


async def test_a_full_disk_refuses_the_submit_and_the_retry_succeeds() -> None:
    store = DurableStore()
    async with running(store) as loop:
        store.full = True
        with pytest.raises(Refused, match="No space left on device") as refused:
            await loop.submit(submit_event(loop.new_job_id(), request_id="once"))
        assert refused.value.reason.code == "store_unavailable"
        assert not store.jobs
        store.full = False
        job, _ = await loop.submit(submit_event(loop.new_job_id(), request_id="once"))
        assert list(store.jobs) == [job], "the retry found what was kept"


async def test_unknown_jobs_and_nodes_are_refused_with_a_remedy() -> None:
    async with running(DurableStore()) as loop:
        for event in (
            events.CancelRequested(at_s=0, job="job-9", user="ada"),
            events.DrainRequested(at_s=0, node="nowhere", grace_s=1.0, cause=""),
        ):
            with pytest.raises(Refused) as refused:
                await loop.apply(event)
            assert refused.value.reason.remedy


async def test_subscribers_hear_every_row_once_and_only_after_it_was_stored() -> None:
    store = DurableStore()
    async with running(store) as loop:
        heard = loop.subscribe()
        await loop.submit(submit_event(loop.new_job_id(), request_id="a"))
        async with asyncio.timeout(60):
            row = await anext(heard)
        assert row.kind == "submitted"
        assert row in store.rows
    assert [r.sequence for r in store.rows] == list(range(1, len(store.rows) + 1))
    assert [row.kind async for row in heard if row.kind == "submitted"] == [], "heard once, and then no more"


async def test_a_slow_subscriber_is_cut_off_and_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_loop, "SUBSCRIBER_ROWS", 3)
    async with running(DurableStore()) as loop:
        slow = loop.subscribe()
        for number in range(10):
            await loop.submit(submit_event(loop.new_job_id(), request_id=f"r{number}"))
        assert slow.cut_off


async def test_stopping_answers_those_who_wait() -> None:
    store = DurableStore()
    async with running(store) as loop:
        waiting = asyncio.create_task(loop.apply(events.CancelRequested(at_s=0, job="x", user="ada")))
        await asyncio.sleep(0)
    with pytest.raises(Refused):
        await waiting


async def test_a_bug_in_one_event_does_not_stop_the_loop() -> None:
    async with running(DurableStore()) as loop:
        job, _ = await loop.submit(submit_event(loop.new_job_id(), request_id="a"))
        with pytest.raises(Refused, match="cannot go from queued to done"):
            await loop.apply(events.JobEnded(at_s=0, job=job, outcome="done"))
        await loop.submit(submit_event(loop.new_job_id(), request_id="b"))


async def test_large_plans_are_made_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_loop, "BIG", 0)
    async with running(DurableStore()) as loop:
        job, _ = await loop.submit(submit_event(loop.new_job_id(), request_id="a"))
        await until(lambda: job in loop.unplaced)


# --- by hand -----------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_it_is_saved() -> None:
    world = World()
    world.add_site()
    world.twin.add_node("n1", "s", devices(1))
    world.twin.owner_lends("n1")
    world.store.full = True
    with pytest.raises(OSError, match="No space left"):
        world.turn()
    assert world.twin.epoch_of("n1") == 0, "the agent does not know of a lease that is not saved"
    world.store.full = False
    world.turn()
    assert world.twin.epoch_of("n1") == 1
    kinds = [row.kind for row in world.store.rows]
    assert kinds.count("lease_opened") == 1
    assert [row.sequence for row in world.store.rows] == list(range(1, len(kinds) + 1))


def test_a_restarted_scheduler_takes_up_running_jobs_without_touching_them() -> None:
    world = World()
    world.add_site()
    world.add_nodes(4)
    job = world.submit(needs=TWO_TO_FOUR)
    world.run(10.0)
    before = world.job(job)
    world.crash()
    assert world.job(job).state is JobState.RUNNING
    world.run(60.0, step_s=1.0)
    after = world.job(job)
    assert (after.state, after.assignment, after.rescales) == (before.state, before.assignment, before.rescales)
    assert all(lease.is_live for lease in world.inventory.leases.values())
    world.inventory.settle(world.clock.now_s())
    world.inventory.check()


def test_agents_that_do_not_come_back_after_a_restart_lose_their_leases_in_time() -> None:
    world = World()
    world.add_site()
    names = world.add_nodes(4)
    job = world.submit(needs=TWO_TO_FOUR)
    world.run(10.0)
    world.twin.drop_agent(names[0])
    world.crash()
    world.run(15.0)
    assert world.job(job).width == 4, "it has its time to come back"
    world.run(30.0)
    assert world.job(job).width == 3


def test_a_job_that_waits_is_told_only_once_why() -> None:
    world = World()
    world.add_site()
    job = world.submit(needs=TWO_TO_FOUR)
    world.run(20.0)
    assert len([row for row in world.store.rows if row.kind == "unplaced" and row.job == job]) == 1


def test_quiet_time_saves_nothing() -> None:
    world = World()
    world.add_site()
    world.add_nodes(2)
    world.submit(needs=TWO_TO_FOUR)
    world.run(10.0)
    rows = len(world.store.rows)
    world.run(30.0)
    assert len(world.store.rows) == rows


def test_commit_rejects_what_no_longer_fits() -> None:
    """The plan was made; then its node was reclaimed and another job took the device."""
    world = World()
    world.add_site()
    names = world.add_nodes(2)
    world.run(3.0)
    world.submit(needs=TWO_TO_FOUR)
    world.take_in()
    stale = control_loop.Replanner()(world.inventory.snapshot(world.clock.now_s()))
    lease = world.inventory.live_lease(names[0])
    assert lease
    at_s = world.clock.now_s()
    world.inventory.apply(
        events.NodeReclaimed(at_s=at_s, lease=lease.key, deadline_s=at_s + 9, grace_s=9, cause="owner")
    )
    committed = control_loop.commit(stale, world.inventory, at_s)
    assert not committed.applied
    assert committed.rejected[0].reason.code == "lease_not_ready"
    wrong = replace(stale.steps[0], assignment=replace(stale.steps[0].assignment, revision=7))
    again = control_loop.commit(replace(stale, steps=(wrong,)), world.inventory, at_s)
    assert again.rejected[0].reason.code == "superseded"
    world.inventory.check()
    assert world.inventory.leases[lease.key].state is LeaseState.DRAINING

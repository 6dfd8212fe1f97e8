"""Law 1 with real processes: a reclaimed node is free of ours by its deadline, whoever else is dead."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from agents import process_tree
from tests.agents.conftest import AgentProcess, Scheduler, alive, lent, until

pytestmark = pytest.mark.slow


async def test_a_reclaim_over_the_control_socket_frees_the_node_and_is_reported(
    agent: AgentProcess, scheduler: Scheduler
) -> None:
    ran = await lent(agent)
    assert len(ran) >= 3  # keeper, raylet, its child
    answer = await agent.say(command="reclaim", grace_s=5)
    assert answer["ok"]
    notice = await scheduler.one("reclaim")
    assert (notice.epoch, notice.grace_s) == (1, 5)
    assert 0 < notice.deadline_s - time.time() <= 5
    scheduler.leave(1)
    left = await scheduler.one("left")
    assert (left.epoch, left.cause) == (1, "reclaimed")
    assert left.free_s < 5
    assert not any(alive(pid) for pid in ran)
    assert not list(agent.folder.glob("fwl*"))
    withheld = await scheduler.one("report", lambda r: not r.spare_devices and not r.epoch)
    assert "lend" in withheld.reason
    count = len(scheduler.messages)
    await agent.say(command="lend")
    await scheduler.one("report", lambda r: r.spare_devices, after=count)


async def test_the_deadline_holds_without_a_scheduler_and_against_stubborn_strays(
    agent: AgentProcess, scheduler: Scheduler
) -> None:
    ran = await lent(agent, fake_ray="stubborn stray scrubbed spawning shared")
    await until(lambda: len(agent.ours()) >= 5)
    assert agent.shared.exists()
    ran |= set(agent.ours())
    await scheduler.stop()
    await agent.say(command="reclaim", grace_s=3)
    await until(lambda: not agent.ours())
    assert not any(alive(pid) for pid in ran)
    last = await _last_lease(agent)
    assert last["cause"] == "reclaimed"
    assert 1.5 < last["free_s"] < 3
    assert last["killed"] >= 2
    assert not agent.shared.exists()
    await scheduler.start()
    left = await scheduler.one("left")
    assert (left.epoch, left.killed) == (1, last["killed"])
    assert scheduler.all("hello")[-1].epoch == 1  # the lease that the next message ends


async def test_no_grace_kills_at_once(agent: AgentProcess, scheduler: Scheduler) -> None:
    await lent(agent, fake_ray="stubborn")
    await agent.say(command="reclaim", grace_s=0)
    left = await scheduler.one("left")
    assert left.killed >= 2
    assert not agent.ours()


@pytest.mark.parametrize("fake_ray", ["", "stubborn stray scrubbed spawning"])
async def test_sigkill_of_the_agent_leaves_nothing(agent: AgentProcess, fake_ray: str) -> None:
    ran = await lent(agent, fake_ray=fake_ray)
    os.kill(agent.pid, signal.SIGKILL)
    await agent.ended()
    await until(lambda: not agent.ours() and not any(alive(pid) for pid in ran))
    assert not list(agent.folder.glob("fwl*"))


async def test_a_stopped_agent_does_not_keep_the_node(agent: AgentProcess) -> None:
    ran = await lent(agent, fake_ray="stubborn stray")
    await agent.say(command="reclaim", grace_s=3)
    os.kill(agent.pid, signal.SIGSTOP)
    await until(lambda: not any(alive(pid) for pid in ran))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_agent_clears_up_where_its_keeper_cannot(
    agent: AgentProcess, scheduler: Scheduler, how: signal.Signals
) -> None:
    ran = await lent(agent, fake_ray="stubborn stray scrubbed")
    keeper = next(pid for pid in ran if _parent(pid) == agent.pid)
    os.kill(keeper, how)
    if how is signal.SIGSTOP:
        await agent.say(command="reclaim", grace_s=2)
    left = await scheduler.one("left")
    assert left.cause == ("reclaimed" if how is signal.SIGSTOP else "raylet_died")
    assert not agent.ours()
    assert not any(alive(pid) for pid in ran)


def _parent(pid: int) -> int:
    found = process_tree.read(pid)
    return found.parent if found else 0


async def _last_lease(agent: AgentProcess) -> dict[str, Any]:
    for _ in range(1000):
        if last := (await agent.say(command="status"))["last"]:
            return dict(last)
        await asyncio.sleep(0.05)
    raise AssertionError("the lease never ended")


async def test_a_new_agent_clears_up_after_one_killed_together_with_its_keeper(
    agent: AgentProcess, scheduler: Scheduler
) -> None:
    ran = await lent(agent, fake_ray="stubborn stray")
    for pid in [agent.pid, *(pid for pid in ran if _parent(pid) == agent.pid)]:
        os.kill(pid, signal.SIGKILL)
    await agent.ended()
    await until(lambda: any(alive(pid) for pid in ran), 5)
    agent.start()
    count = len(scheduler.messages)
    assert (await scheduler.one("hello", after=count)).epoch == 0
    assert not any(alive(pid) for pid in ran)


async def test_sigterm_is_the_owners_word_and_ends_the_agent(agent: AgentProcess, scheduler: Scheduler) -> None:
    ran = await lent(agent, options=("--grace-s", "2"))
    os.kill(agent.pid, signal.SIGTERM)
    assert (await scheduler.one("reclaim")).grace_s == 2
    assert await agent.ended() == 0
    left = await scheduler.one("left")
    assert left.cause == "reclaimed"
    assert left.free_s < 2
    assert not any(alive(pid) for pid in ran)


async def test_an_operators_drain_is_obeyed_for_the_right_epoch_only(agent: AgentProcess, scheduler: Scheduler) -> None:
    await lent(agent, epoch=4)
    scheduler.reclaim(3, grace_s=0)
    scheduler.leave(3)
    scheduler.join(3)
    scheduler.reclaim(4, grace_s=2)
    assert (await scheduler.one("reclaim")).epoch == 4
    assert (await scheduler.one("left")).epoch == 4
    assert len(scheduler.all("left")) == 1
    await asyncio.sleep(0)
    assert not agent.ours()

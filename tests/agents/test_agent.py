"""The agent in the test's own process: sources that break, and a wall clock that jumps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agents.agent import Agent, Node
from agents.connection import Peer
from agents.decide import Hold, Phase
from agents.probes.cpu import CpuProbe
from agents.raylet import RayletOptions, find_ray
from agents.spare import Judgement, Now, asking
from agents.spare.always import Always
from agents.spare.asking import Asking, off_loop

DEVICES = ("cpu:0",)


class Broken:
    """A source with a mistake in it."""

    name = "broken"

    async def judge(self, now: Now) -> Judgement:
        raise ZeroDivisionError


class Silent:
    """A source that answers when it is let, and counts how often it is asked."""

    name = "silent"

    def __init__(self) -> None:
        self.asked = 0
        self.let = asyncio.Event()

    async def judge(self, now: Now) -> Judgement:
        self.asked += 1
        await self.let.wait()
        return Judgement(DEVICES, self.name, "after all")


async def test_a_source_that_breaks_makes_nothing_spare() -> None:
    judged = await Asking([Always(DEVICES), Broken()], DEVICES).judge(Now(0, 0))
    assert judged.spare == ()
    assert (judged.source, "ZeroDivisionError" in judged.reason) == ("broken", True)


async def test_a_silent_source_makes_nothing_spare_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_ANSWER_S", 0.05)
    source = Silent()
    asked = Asking([source], DEVICES)
    for _ in range(3):
        assert (await asked.judge(Now(0, 0))).spare == ()
    source.let.set()
    assert (await asked.judge(Now(0, 0))).spare == DEVICES
    assert source.asked == 1


async def test_a_call_off_the_loop_gives_its_answer_or_its_error() -> None:
    assert await off_loop(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await off_loop(lambda: 1 // 0)


async def test_a_wall_clock_that_jumps_moves_no_deadline(tmp_path: Path) -> None:
    now = [Now(105.0, 1e9)]
    probe = CpuProbe()
    node = Node("n1", "s", "127.0.0.1", "0", probe, probe.devices())
    peer = Peer("127.0.0.1:1", tmp_path / "token")
    agent = Agent(node, [Always(DEVICES)], peer, RayletOptions("n1", tmp_path), 30.0, clock=lambda: now[0])
    agent.hold = Hold(Phase.DRAINING, 1, 1, DEVICES, reclaimed_at=100.0, deadline=110.0)
    for jump_s in (0.0, 86_400.0, -86_400.0):
        now[0] = Now(106.0, 1e9 + 1 + jump_s)
        assert agent.status()["deadline_s"] == now[0].unix_s + 4
        assert agent.hold.deadline == 110.0


def test_ray_is_found_beside_this_python() -> None:
    assert Path(find_ray("")).name == "ray"

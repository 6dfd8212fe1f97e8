"""The site's stream over real gRPC: order across breaks, refusals, a scheduler that is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from protocol import common_pb2, site_pb2
from runtime.site.outbox import Outbox
from runtime.site.session import Peer, Session, SessionRefused
from tests.site.stand_in import TOKEN, StandIn


@pytest.fixture
async def scheduler() -> AsyncIterator[StandIn]:
    made = StandIn()
    await made.start()
    yield made
    await made.stop()


class Site:
    """A session with its outbox, and the commands that came."""

    def __init__(self, port: int, token: str = TOKEN) -> None:
        self.outbox = Outbox()
        self.commands: list[site_pb2.SiteCommand] = []
        hello = site_pb2.SiteHello(site="plain", instance="i")
        peer = Peer(f"127.0.0.1:{port}", token)
        self.session = Session(peer, hello, self.outbox, self.commands.append)
        self.task = asyncio.create_task(self.session.run())

    def say(self, n: int) -> None:
        lease = common_pb2.LeaseRef(node="a", epoch=1)
        changed = site_pb2.WorkerChanged(job="j", worker=f"w{n}", lease=lease, state="running")
        self.outbox.put(site_pb2.SiteMessage(worker=changed))

    async def close(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def test_order_holds_across_breaks(scheduler: StandIn) -> None:
    site = Site(scheduler.port)
    for n in range(3):
        site.say(n)
    await scheduler.until(lambda: len(scheduler.bodies("worker")) == 3)
    await scheduler.stop()
    for n in range(3, 6):
        site.say(n)
    await scheduler.start()
    await scheduler.until(lambda: [w.worker for w in scheduler.bodies("worker")][-1:] == ["w5"])
    said = [w.worker for w in scheduler.bodies("worker")]
    assert said[:3] == ["w0", "w1", "w2"]
    assert said[-6:] == ["w0", "w1", "w2", "w3", "w4", "w5"], "the last moments again, then what waited"
    assert len(scheduler.hellos) == 2
    await site.close()


async def test_commands_arrive_and_the_session_says_that_it_is_open(scheduler: StandIn) -> None:
    site = Site(scheduler.port)
    scheduler.say(site_pb2.SiteCommand(end=site_pb2.EndJob(job="j", cause="cancelled")))
    await asyncio.wait_for(site.session.opened.wait(), 30)
    assert [command.end.job for command in site.commands] == ["j"]
    await site.close()


async def test_a_session_is_open_even_if_the_scheduler_has_nothing_to_say(scheduler: StandIn) -> None:
    site = Site(scheduler.port)
    await asyncio.wait_for(site.session.opened.wait(), 30)
    await site.close()


async def test_a_wrong_token_is_final_at_the_start(scheduler: StandIn) -> None:
    site = Site(scheduler.port, "fallow-site-wrong")
    with pytest.raises(SessionRefused, match="no such token"):
        await asyncio.wait_for(site.task, 30)


async def test_a_scheduler_that_is_away_is_tried_again(scheduler: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    await scheduler.stop()
    with caplog.at_level(logging.WARNING):
        site = Site(scheduler.port)
        async with asyncio.timeout(30):
            while "no session with the scheduler" not in caplog.text:  # noqa: ASYNC110  a log has no event
                await asyncio.sleep(0.05)
    await scheduler.start()
    await scheduler.until(lambda: scheduler.hellos)
    await site.close()

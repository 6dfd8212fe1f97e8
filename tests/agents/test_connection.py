"""The stream to the scheduler: what is repeated, what is given up, and how long it waits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import connection
from agents.connection import Connection, Peer, Refused, pause_s
from protocol import agent_pb2 as pb
from tests.agents.conftest import Scheduler, until


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_double_with_jitter_and_never_exceed_ten_seconds(failures: int, chance: float) -> None:
    assert 0.25 <= pause_s(failures, chance) <= 10
    assert pause_s(failures, 0.0) < pause_s(failures, 0.9)
    assert pause_s(failures, chance) <= pause_s(failures + 1, chance)


def made(scheduler: Scheduler, folder: Path, token: str = "fallow-agent-right") -> Connection:
    (folder / "token").write_text(f"{token}\n")
    hello = pb.AgentMessage(hello=pb.AgentHello(node="n1"))
    peer = Peer(f"127.0.0.1:{scheduler.port}", folder / "token")
    return Connection(peer, lambda: [hello], lambda command: None, lambda: 0.0)


async def test_a_wrong_token_is_refused_with_the_remedy(scheduler: Scheduler, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"token is not known.*--token-file"):
        await asyncio.wait_for(made(scheduler, tmp_path, "wrong").run(), 60)


async def test_a_second_agent_gives_up_after_a_while(
    scheduler: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_SECOND_AGENT_S", 0.5)
    scheduler.refuse = (grpc.StatusCode.ALREADY_EXISTS, "Another agent is connected as 'n1'.")
    with pytest.raises(Refused, match="--node: Another agent is connected"):
        await asyncio.wait_for(made(scheduler, tmp_path).run(), 60)


async def test_once_accepted_it_outlives_refusals_and_restarts(scheduler: Scheduler, tmp_path: Path) -> None:
    link = made(scheduler, tmp_path)
    running = asyncio.create_task(link.run())
    await asyncio.wait_for(link.accepted.wait(), 60)
    await scheduler.stop()
    await until(lambda: not link.connected)
    link.send(pb.AgentMessage(report=pb.NodeReport(reason="lost on the way")))
    link.send(pb.AgentMessage(left=pb.NodeLeft(epoch=3)), keep=True)
    scheduler.token = "another"
    await scheduler.start()
    await asyncio.sleep(1.0)  # long enough for an attempt that is refused
    assert not running.done()
    (tmp_path / "token").write_text("another")
    assert (await scheduler.one("left")).epoch == 3
    assert not scheduler.all("report")
    running.cancel()


@pytest.mark.slow
async def test_kept_messages_are_repeated_until_their_stream_has_settled(scheduler: Scheduler, tmp_path: Path) -> None:
    link = made(scheduler, tmp_path)
    running = asyncio.create_task(link.run())
    await asyncio.wait_for(link.accepted.wait(), 60)
    link.send(pb.AgentMessage(left=pb.NodeLeft(epoch=3)), keep=True)
    await scheduler.one("left")
    await scheduler.stop()
    await scheduler.start()
    await until(lambda: len(scheduler.all("left")) == 2)
    await until(lambda: not link.kept)
    await scheduler.stop()
    await scheduler.start()
    await until(lambda: scheduler.streams == 3)
    assert len(scheduler.all("left")) == 2
    running.cancel()

"""One agent as a process beside a scheduler that comes and goes: epochs, restarts, bad starts, footprint."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.decide import AllGone, Happening, JoinAsked, StartRaylet
from agents.lending import Lending
from agents.raylet import RayletOptions
from tests.agents.conftest import AgentProcess, Scheduler, alive, lent, until

pytestmark = pytest.mark.slow


async def test_it_says_who_it_is_and_what_it_costs(agent: AgentProcess, scheduler: Scheduler) -> None:
    agent.start("--devices", "2", "--memory-bytes", "1000", "--grace-s", "7")
    hello = await scheduler.one("hello")
    assert (hello.node, hello.site, hello.epoch, hello.address) == ("n1", "s", 0, "127.0.0.1")
    assert [(d.id, d.kind, d.memory_bytes, d.cores) for d in hello.devices] == [
        ("cpu:0", "cpu", 1000, 1),
        ("cpu:1", "cpu", 1000, 1),
    ]
    report = await scheduler.one("report")
    assert list(report.spare_devices) == ["cpu:0", "cpu:1"]
    assert (report.epoch, report.source, report.grace_s) == (0, "always", 7)
    beat = await scheduler.one("report", lambda r: r.agent_cpu_fraction > 0)
    assert beat.agent_rss_bytes < 60e6
    await until(agent.ready_file.exists)
    assert json.loads(agent.ready_file.read_text())["pid"] == agent.pid


async def test_it_costs_little(agent: AgentProcess, scheduler: Scheduler) -> None:
    agent.start("--look-s", "2", source="host")
    for _ in range(3):
        beat = await scheduler.one("report", after=len(scheduler.messages))
        assert beat.agent_rss_bytes < 60e6
    assert beat.agent_cpu_fraction < 0.10  # 0.002 on a machine that is not busy


async def test_the_raylet_gets_its_label_its_marks_and_no_secret_of_the_agents(
    agent: AgentProcess, scheduler: Scheduler
) -> None:
    core = min(os.sched_getaffinity(0))
    ran = await lent(agent, epoch=12, options=("--devices", "3", "--affinity", str(core)))
    assert os.sched_getaffinity(_raylet(ran)) == {core}
    arguments = (agent.folder.parent / "n1_12").read_text().split("\n")
    assert "--labels=fallow-lease=n1_12" in arguments
    assert "--num-cpus=3" in arguments
    environment = _words(_raylet(ran), "environ")
    assert {b"FALLOW_LEASE=n1/12", b"RAY_AUTH_MODE=token", b"RAY_AUTH_TOKEN=secret"} <= set(environment)
    assert not any(scheduler.token.encode() in variable for variable in environment)


def _raylet(ran: set[int]) -> int:
    """The process that took the raylet's place; its keeper has the same words at the end of its own."""
    found = {pid: _words(pid, "cmdline") for pid in ran}
    return min(pid for pid, words in found.items() if b"start" in words and b"-E" not in words)


def _words(pid: int, file: str) -> list[bytes]:
    return Path(f"/proc/{pid}/{file}").read_bytes().split(b"\0")


async def test_a_restarted_scheduler_finds_the_lease_running(agent: AgentProcess, scheduler: Scheduler) -> None:
    ran = await lent(agent, epoch=5)
    await scheduler.stop()
    await asyncio.sleep(0.5)
    count = len(scheduler.messages)
    await scheduler.start()
    assert (await scheduler.one("hello", after=count)).epoch == 5
    assert (await scheduler.one("raylet_started", after=count)).epoch == 5
    assert all(alive(pid) for pid in ran)
    assert len({hello.instance for hello in scheduler.all("hello")}) == 1
    scheduler.grant(5)
    scheduler.join(5)
    scheduler.leave(5)
    assert (await scheduler.one("left")).cause == "released"
    assert not agent.ours()


async def test_another_epoch_starts_only_after_the_old_raylet_is_gone(
    agent: AgentProcess, scheduler: Scheduler
) -> None:
    old = await lent(agent, epoch=1, fake_ray="stubborn")
    scheduler.grant(2)
    scheduler.join(2)
    started = await scheduler.one("raylet_started", lambda s: s.epoch == 2)
    assert not started.error
    kinds = [(m.WhichOneof("body"), getattr(m, m.WhichOneof("body") or "").epoch) for m in scheduler.messages]
    assert kinds.index(("left", 1)) < kinds.index(("raylet_started", 2))
    assert not any(alive(pid) for pid in old)
    assert all("n1_2" in name.name or "n1_1" in name.name for name in agent.folder.parent.glob("n1_*"))


async def test_a_raylet_that_cannot_start_says_why_and_the_node_rests(
    agent: AgentProcess, scheduler: Scheduler
) -> None:
    agent.start(fake_ray="crash")
    await scheduler.one("report", lambda r: r.spare_devices)
    scheduler.grant(1)
    scheduler.join(1)
    started = await scheduler.one("raylet_started")
    assert "status 3" in started.error
    assert "does not answer" in started.error
    assert (await scheduler.one("left")).cause == "raylet_died"
    assert "raylet failed" in (await scheduler.one("report", lambda r: not r.spare_devices)).reason


async def test_a_raylet_that_dies_ends_the_lease(agent: AgentProcess, scheduler: Scheduler) -> None:
    ran = await lent(agent)
    os.kill(_raylet(ran), signal.SIGKILL)
    left = await scheduler.one("left")
    assert (left.cause, left.free_s) == ("raylet_died", 0)
    assert not agent.ours()


async def test_without_ray_nothing_is_offered_and_the_remedy_is_told(agent: AgentProcess, scheduler: Scheduler) -> None:
    agent.start("--ray", "/no/such/ray")
    report = await scheduler.one("report")
    assert not report.spare_devices
    assert "pip install 'fallow[agent]'" in report.reason


async def test_a_program_that_turns_against_lending_reclaims_with_its_own_grace(
    agent: AgentProcess, scheduler: Scheduler
) -> None:
    said = agent.folder.with_name("said")
    said.write_text('{"spare": true, "grace_s": 3}')
    await lent(agent, source="command", options=("--command", f"cat {shlex.quote(str(said))}"))
    said.write_text('{"spare": false, "grace_s": 3, "reason": "the owner is back"}')
    notice = await scheduler.one("reclaim")
    assert notice.grace_s == 3
    assert "the owner is back" in notice.cause
    left = await scheduler.one("left")
    assert left.free_s < 3


async def test_a_known_end_is_kept_to_without_another_word_of_the_agent(agent: AgentProcess) -> None:
    gone: asyncio.Queue[Happening] = asyncio.Queue()
    agent.folder.mkdir()
    options = RayletOptions("n1", agent.folder, ray=str(agent.make_ray()))
    lending = Lending(options, lambda epoch, error: None, gone.put_nowait)
    lending.start(StartRaylet(JoinAsked(1, "head:1", "secret", "", ("cpu:0",)), ("cpu:0",)), time.monotonic() + 90)
    await until(lambda: lending.is_up)
    ends_at = time.monotonic() + 3
    lending.expect_end(ends_at)
    assert isinstance(await asyncio.wait_for(gone.get(), 60), AllGone)
    assert time.monotonic() > ends_at - 2
    assert not list(agent.folder.glob("fwl*"))


def start(agent: AgentProcess, *options: str) -> subprocess.CompletedProcess[str]:
    """Run an agent to its end."""
    command = [sys.executable, "-m", "agents", "--node", "n1", "--site", "s", "--dir", str(agent.folder)]
    command += ["--scheduler", f"127.0.0.1:{agent.scheduler.port}", "--token-file", str(agent.token_file)]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=100, check=False)


async def test_a_second_agent_in_the_same_folder_is_refused(agent: AgentProcess, scheduler: Scheduler) -> None:
    agent.start()
    await scheduler.one("hello")
    second = await asyncio.to_thread(start, agent)
    assert second.returncode == 2
    assert "another agent uses it" in second.stderr


async def test_a_wrong_token_ends_it_with_status_4(agent: AgentProcess) -> None:
    agent.token_file.write_text("fallow-agent-wrong")
    ended = await asyncio.to_thread(start, agent)
    assert ended.returncode == 4
    assert "the token is not known" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--token-file", "/no/such/file"), "--token-file /no/such/file"),
        (("--node", "a b"), "--node 'a b'"),
        (("--scheduler", "here"), "write HOST:PORT"),
        (("--source", "schedule"), "--window"),
        (("--source", "schedule", "--window", "mon"), "window 'mon'"),
        (("--source", "command"), "--command"),
        (("--spare-below", "0.9"), "--busy-above"),
        (("--grace-s", "-3"), "--grace-s"),
        (("--cores", "0"), "--cores"),
        (("--dir", "/proc/no"), "--dir /proc/no"),
    ],
)
async def test_misuse_is_told_with_status_2(agent: AgentProcess, options: tuple[str, ...], word: str) -> None:
    ended = await asyncio.to_thread(start, agent, *options)
    assert ended.returncode == 2
    assert word in ended.stderr
    assert "Traceback" not in ended.stderr

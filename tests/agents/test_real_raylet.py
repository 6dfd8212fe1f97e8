"""With a real Ray cluster: the node joins with its label, runs an actor, and leaves with nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents import process_tree
from agents.raylet import lease_folders
from tests.agents.conftest import AgentProcess, Scheduler, alive, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_DRIVER = """
import json, os, sys, time, ray
ray.init(address=sys.argv[1], namespace="fallow", log_to_driver=False, logging_level="ERROR")
print(json.dumps({}), flush=True)
until = time.monotonic() + 60
while not (mine := [n for n in ray.nodes() if n["Alive"] and n["Labels"].get("fallow-lease") == "n1_7"]):
    assert time.monotonic() < until, ray.nodes()
    time.sleep(0.1)
seen_at = time.time()
@ray.remote(num_cpus=1)
class Actor:
    def look(self): return os.getpid(), os.environ["FALLOW_LEASE"], os.environ.get("OMP_NUM_THREADS")
actor = Actor.options(label_selector={"fallow-lease": "n1_7"}, lifetime="detached", name="w").remote()
pid, lease, threads = ray.get(actor.look.remote(), timeout=60)
cpus = mine[0]["Resources"]["CPU"]
print(json.dumps({"pid": pid, "lease": lease, "cpus": cpus, "seen_at": seen_at, "actor_at": time.time()}), flush=True)
sys.stdin.readline()
until = time.monotonic() + 30
while any(n["Alive"] and "fallow-lease" in n["Labels"] for n in ray.nodes()):
    assert time.monotonic() < until, "the head still believes in the node"
    time.sleep(0.02)
print(json.dumps({"forgotten_at": time.time()}), flush=True)
"""


class Head:
    """A Ray head of the test's own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.token = secrets.token_hex(24)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        self.log = folder / "head.log"
        ray = Path(sys.executable).with_name("ray")
        options = ["--head", "--block", f"--port={self.address.partition(':')[2]}", f"--temp-dir={folder / 'h'}"]
        options += ["--num-cpus=0", "--include-dashboard=false", "--disable-usage-stats"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [ray, "start", *options, "--object-store-memory=80000000"],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "Ray runtime started" in self.log.read_text()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Driver:
    """A Ray driver that says what it sees, a line of JSON at a time."""

    def __init__(self, head: Head) -> None:
        self.errors = head.log.with_name("driver.log")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _DRIVER, head.address],
            env=head.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("wb"),
        )

    async def says(self) -> dict[str, Any]:
        assert self.process.stdout
        while True:
            line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), 120)
            assert line, self.errors.read_text()
            if line.startswith(b"{"):  # Ray itself prints here when a worker dies
                return dict(json.loads(line))

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def head(place: Path) -> Iterator[Head]:
    started = Head(place)
    yield started
    started.stop()


async def test_join_work_and_leave(head: Head, agent: AgentProcess, scheduler: Scheduler) -> None:
    await until(head.is_up)
    agent.start("--ray", str(Path(sys.executable).with_name("ray")), "--devices", "2")
    await scheduler.one("report", lambda r: len(r.spare_devices) == 2)
    driver = Driver(head)
    try:
        await driver.says()
        joined_at = time.time()
        scheduler.grant(7)
        scheduler.join(7, head.address, head.token)
        started = await scheduler.one("raylet_started")
        started_at = time.time()
        assert not started.error
        seen = await driver.says()
        assert seen["lease"] == "n1/7"
        assert seen["cpus"] == 2
        ran = agent.ours()
        assert seen["pid"] in ran
        mark, folders = f"{process_tree.MARK}={agent.folder}".encode(), lease_folders(agent.folder)
        unmarked = [pid for pid in ran if alive(pid) and not process_tree.is_marked(pid, mark, folders)]
        assert not unmarked, "would not be found if agent and keeper were killed together"

        reclaimed_at = time.time()
        await agent.say(command="reclaim", grace_s=10)
        scheduler.leave(7)
        left = await scheduler.one("left")
        driver.go_on()
        forgotten = await driver.says()
    finally:
        driver.stop()
    assert left.cause == "reclaimed"
    assert left.free_s < 10
    assert not any(alive(pid) for pid in ran)
    assert not agent.ours()
    assert not list(agent.folder.glob("fwl*"))
    print(
        f"raylet listens after {started_at - joined_at:.2f} s, label visible after {seen['seen_at'] - joined_at:.2f} s"
    )
    print(f"first actor call after {seen['actor_at'] - joined_at:.2f} s, {len(ran)} processes")
    print(f"free after {left.free_s:.2f} s, killed {left.killed}, head knows after", end=" ")
    print(f"{forgotten['forgotten_at'] - reclaimed_at:.2f} s")

"""A Ray head and raylets of this machine, as a site and agents start them, for benchmarks without a scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from agents.decide import JoinAsked
from agents.raylet import RayletOptions, command, environment, find_ray
from runtime.site import ray_driver
from runtime.site.controller import LeaseKey
from runtime.site.head import Head, RayHead
from runtime.site.nodes import Nodes, live_labels
from runtime.site.processes import kill_session, session_members

READY_LIMIT_S = 120.0


@dataclass(frozen=True)
class Raylet:
    """A borrowed node; its processes are one session."""

    lease: LeaseKey
    process: subprocess.Popen[bytes]
    temp: Path
    started_s: float  # Unix time


class Cluster:
    """Nodes come and go; `gone` is called for each that the site no longer sees."""

    def __init__(self, head: Head, folder: Path) -> None:
        self.head = head
        self._folder = folder
        self._epochs = itertools.count(1)
        self._raylets: dict[LeaseKey, Raylet] = {}
        self._ready_s: dict[LeaseKey, float] = {}
        self._changed = asyncio.Event()
        self.gone: Callable[[LeaseKey], None] = lambda _: None
        self.nodes = Nodes(live_labels, self._is_ready, lambda lease: self.gone(lease))

    def start(self) -> LeaseKey:
        """Start a raylet with one device; returns at once."""
        epoch = next(self._epochs)
        lease = LeaseKey(f"bench-{epoch}", epoch)
        temp = Path(tempfile.mkdtemp(prefix="fw-b-"))
        options, ray = RayletOptions(lease.node, self._folder), find_ray("")
        join = JoinAsked(epoch, self.head.address, self.head.token, self.head.ray_version, ("cpu0",))
        started_s = time.time()
        with (self._folder / f"raylet-{epoch}.log").open("wb") as output:
            process = subprocess.Popen(
                command(options, ray, join, 1, temp),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(os.environ, options, join, ("cpu0",)),
                start_new_session=True,
            )
        self._raylets[lease] = Raylet(lease, process, temp, started_s)
        return lease

    async def ready(self, *leases: LeaseKey) -> None:
        """Until the site sees these nodes. Raises TimeoutError."""
        async with asyncio.timeout(READY_LIMIT_S):
            while not self._ready_s.keys() >= set(leases):
                self._changed.clear()
                await self._changed.wait()

    def joined(self, lease: LeaseKey) -> tuple[float, float]:
        """Unix times at which its raylet was started, and at which the site saw it."""
        return self._raylets[lease].started_s, self._ready_s[lease]

    async def kill(self, lease: LeaseKey) -> None:
        """The node's whole process tree at once, as in a power cut; nothing happens if it is gone already."""
        raylet = self._raylets.pop(lease, None)
        if raylet is not None:
            await asyncio.to_thread(_end, raylet)

    def pause(self, lease: LeaseKey, actor: str) -> None:
        """SIGSTOP the node's actor of this class: it hangs. Raises RuntimeError if there is none."""
        for pid in session_members(self._raylets[lease].process.pid):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(f"ray::{actor}".encode()):
                os.kill(pid, signal.SIGSTOP)
                return
        raise RuntimeError(f"no {actor} runs on {lease}")

    async def close(self) -> None:
        """Kill whatever is left."""
        for lease in list(self._raylets):
            await self.kill(lease)

    def _is_ready(self, lease: LeaseKey, _: str) -> None:
        self._ready_s[lease] = time.time()
        self._changed.set()


def _end(raylet: Raylet) -> None:
    kill_session(raylet.process.pid)
    raylet.process.wait()
    shutil.rmtree(raylet.temp, ignore_errors=True)


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """A head with this process as its driver, and no node yet. All of it ends with the block."""
    ray_head = RayHead(folder, "127.0.0.1")
    head = await asyncio.to_thread(ray_head.start)
    made = Cluster(head, folder)
    watching: asyncio.Task[None] | None = None
    try:
        await asyncio.to_thread(ray_driver.connect, head)
        watching = asyncio.create_task(made.nodes.run())
        yield made
    finally:
        if watching is not None:
            watching.cancel()
        await made.close()
        await asyncio.to_thread(ray_driver.disconnect)
        await asyncio.to_thread(ray_head.stop, head)

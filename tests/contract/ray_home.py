"""The executor's real home for its contract: gRPC sessions, a site process with its Ray head, agents with raylets.

Only the control loop is missing: a recorder takes the events in its place.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from protocol.agent_pb2_grpc import add_AgentServiceServicer_to_server
from protocol.site_pb2_grpc import add_SiteServiceServicer_to_server
from scheduler.clock import SystemClock
from scheduler.domain import events
from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState, Site
from scheduler.domain.jobs import Job, JobKind, JobState, Role, RoleNeed
from scheduler.rpc.agents import AgentService
from scheduler.rpc.causes import Causes
from scheduler.rpc.sessions import Sessions
from scheduler.rpc.sites import SiteService
from tests.contract.harness import Harness

SITE = "contract"
PATIENCE_S = 150.0

T = TypeVar("T")


class Recorder:
    """Takes the events that a control loop would."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []
        self.changed = threading.Condition()

    async def apply(self, event: events.Event) -> None:
        """See `ControlLoop.apply`."""
        self.post(event)

    def post(self, event: events.Event) -> None:
        """See `ControlLoop.post`."""
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    @property
    def inventory(self) -> Recorder:
        """See `ControlLoop.inventory`: it knows no lease of another site."""
        return self

    leases: dict[LeaseKey, Lease] = {}  # noqa: RUF012  stays empty


class NoLogs:
    """Takes the lines that jobs write."""

    def append(self, job: str, worker: str, lines: Sequence[str]) -> None:
        """See `LogFeed.append`."""


@dataclass
class Agent:
    """One agent process, and the lease that its node is under."""

    node: str
    process: subprocess.Popen[bytes]
    lease: LeaseKey | None = None


class RayHome:
    """Processes that serve every test of a module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recorder = Recorder()
        self.sessions = Sessions()
        self.agents: list[Agent] = []
        self.epochs = 0
        self.numbers = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sessions")
        self._token = folder / "token"
        self._site: subprocess.Popen[bytes] | None = None
        self._server: grpc.aio.Server | None = None
        self.port = 0

    def start(self) -> None:
        """Serve, start the site and wait for it."""
        self._token.write_text("fallow-test")
        self._thread.start()
        self.port = self.on_loop(self._serve())
        self._site = self._spawn("runtime", "site", "--name", SITE, "--dir", str(self.folder / "site"))
        assert self.wait_until(lambda: any(isinstance(e, events.SiteConnected) for e in self.recorder.events))

    def stop(self) -> None:
        """End every process, then the sessions."""
        processes = [agent.process for agent in self.agents] + ([self._site] if self._site else [])
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
        self.on_loop(self._stop_serving())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def site(self) -> Site:
        """The site as it last said hello."""
        hello = next(e for e in reversed(self.recorder.events) if isinstance(e, events.SiteConnected))
        return Site(SITE, True, hello.instance, hello.ray_address, hello.ray_token, hello.ray_version)

    def spare_agent(self) -> Agent:
        """An agent whose node is under no lease; a new one if need be."""
        spare = [agent for agent in self.agents if agent.lease is None]
        return spare[0] if spare else self._start_agent()

    def kill(self, agent: Agent) -> None:
        """SIGKILL the agent, whose keeper then ends all that it started."""
        self.agents.remove(agent)
        agent.process.kill()
        agent.process.wait()

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for events until the condition holds; False after `PATIENCE_S`."""
        with self.recorder.changed:
            return self.recorder.changed.wait_for(condition, PATIENCE_S)

    def on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on the sessions' event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def _start_agent(self) -> Agent:
        self.numbers += 1
        node = f"n{self.numbers}"
        folder = self.folder / node
        options = ["--node", node, "--site", SITE, "--dir", str(folder), "--devices", "1", "--cores", "1"]
        agent = Agent(node, self._spawn("agents", *options, "--source", "always", "--address", "127.0.0.1"))
        self.agents.append(agent)
        return agent

    def is_offered(self, node: str) -> bool:
        """Whether the newest report of the node's agent offers a device."""
        reports = [e for e in self.recorder.events if isinstance(e, events.NodeReported) and e.node == node]
        return bool(reports) and bool(reports[-1].spare_devices)

    def _spawn(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, *arguments]
        command += ["--scheduler", f"127.0.0.1:{self.port}", "--token-file", str(self._token)]
        with (self.folder / f"{module}.log").open("ab") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    async def _serve(self) -> int:
        self._server = grpc.aio.server()
        clock, causes = SystemClock(), Causes()
        loop: Any = self.recorder
        logs: Any = NoLogs()
        add_AgentServiceServicer_to_server(AgentService(loop, self.sessions, clock, causes), self._server)
        add_SiteServiceServicer_to_server(SiteService(loop, self.sessions, logs, clock, causes), self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def _stop_serving(self) -> None:
        assert self._server is not None
        await self._server.stop(grace=None)


class OnLoop:
    """The executor, callable from a test's thread: each call is made on the sessions' event loop."""

    def __init__(self, home: RayHome) -> None:
        self._home = home

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            async def there() -> None:
                getattr(self._home.sessions, name)(*arguments)

            self._home.on_loop(there())

        return call


class RayHarness(Harness):
    """One test's leases and jobs in the module's home."""

    def __init__(self, home: RayHome, folder: Path) -> None:
        self._home = home
        self._folder = folder
        self._jobs: list[str] = []
        self._leases: list[Lease] = []
        executor: Any = OnLoop(home)
        self.executor = executor
        self.site = home.site()
        self._from = len(home.recorder.events)

    @property
    def events(self) -> list[events.Event]:  # type: ignore[override]
        """What was said since this test began."""
        return self._home.recorder.events[self._from :]

    def new_leases(self, count: int) -> Sequence[Lease]:
        return [self._new_lease() for _ in range(count)]

    def _new_lease(self) -> Lease:
        agent = self._home.spare_agent()
        self._home.epochs += 1
        agent.lease = LeaseKey(agent.node, self._home.epochs)
        assert self.wait_until(lambda: self._home.is_offered(agent.node))
        device = Device("cpu:0", "cpu", "cores", 1 << 30, 1)
        lease = Lease(agent.lease, SITE, LeaseState.GRANTED, (device,), "127.0.0.1", time.time(), "c")
        self._leases.append(lease)
        return lease

    def new_job(self, min_width: int, max_width: int) -> Job:
        self._home.numbers += 1
        job = f"job-{self._home.numbers}"
        self._jobs.append(job)
        task = {
            "command": ["sleep", "0.3"],
            "array": [{"n": n} for n in range(2000)],
            "output": str(self._folder / job),
        }
        width = {"min": min_width, "max": max_width}
        spec = json.dumps({"kind": "task", "name": "sleepers", "width": width, "task": task})
        need = RoleNeed(Role.RUNNER, min_width, max_width)
        return Job(job, "sleepers", JobKind.TASK, "ada", JobState.QUEUED, 0.0, spec, (need,), site=SITE)

    def kill(self, lease: Lease) -> None:
        self._home.kill(next(agent for agent in self._home.agents if agent.lease == lease.key))

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        return self._home.wait_until(condition)

    def clean(self) -> None:
        """End this test's jobs and give its nodes back, for the next test."""
        for job in self._jobs:
            if not self._has(events.JobEnded, job=job):
                self.executor.end(self._stub(job), "the test is over")
                self.expect(events.JobEnded, lambda e, job=job: e.job == job)  # type: ignore[misc]
        for agent in self._home.agents:
            lease = next((lease for lease in self._leases if lease.key == agent.lease), None)
            if lease is None:
                continue
            if self._has(events.RayletStarted, lease=lease.key) and not self._has(events.NodeLeft, lease=lease.key):
                self.executor.leave(lease, "released")
                self.expect(events.NodeLeft, lambda e, key=lease.key: e.lease == key)  # type: ignore[misc]
            agent.lease = None

    def _has(self, kind: type[events.Event], **fields: Any) -> bool:
        return any(all(getattr(e, k) == v for k, v in fields.items()) for e in self.seen(kind))

    def _stub(self, job: str) -> Job:
        return Job(job, "sleepers", JobKind.TASK, "ada", JobState.ENDING, 0.0, "{}", (), site=SITE)

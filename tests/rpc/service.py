"""The three services in this process, on a real port, with the real loop and store; and peers that speak to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from protocol import agent_pb2, client_pb2, common_pb2, site_pb2
from protocol.agent_pb2_grpc import AgentServiceStub
from protocol.client_pb2_grpc import FallowServiceStub
from protocol.metadata import REASON_KEY, TOKEN_KEY
from protocol.site_pb2_grpc import SiteServiceStub
from scheduler.clock import SystemClock
from scheduler.control_loop import ControlLoop
from scheduler.inventory import Inventory
from scheduler.rpc.agents import AgentService
from scheduler.rpc.auth import Auth
from scheduler.rpc.causes import Causes
from scheduler.rpc.clients import ClientService
from scheduler.rpc.gate import Gate
from scheduler.rpc.log_feed import LogFeed
from scheduler.rpc.server import RpcServer, TlsFiles
from scheduler.rpc.sessions import Sessions
from scheduler.rpc.sites import SiteService
from scheduler.serve.process import cancelled
from scheduler.store.job_logs import JobLogs
from scheduler.store.sql_store import SqlStore
from scheduler.store.tokens import TokenRole, Tokens

PATIENCE_S = 60.0

TASK = {"kind": "task", "name": "echo", "width": {"min": 1, "max": 2}, "task": {"command": ["true"], "output": "out"}}


@dataclass
class Service:
    """What a test needs of a running server."""

    address: str
    loop: ControlLoop
    tokens: Tokens
    secrets: dict[str, str]
    gate: Gate
    store: SqlStore
    channel: grpc.aio.Channel

    def metadata(self, role: str) -> tuple[tuple[str, str], ...]:
        """What a caller of that role sends."""
        return ((TOKEN_KEY, f"Bearer {self.secrets[role]}"),)

    @property
    def client(self) -> Any:
        """A stub for users."""
        return FallowServiceStub(self.channel)

    async def call(self, method: str, request: Any, role: str = "admin") -> Any:
        """One call of FallowService; of a stream, its first message."""
        answer = getattr(self.client, method)(request, metadata=self.metadata(role), timeout=PATIENCE_S)
        return await (answer.read() if hasattr(answer, "read") else answer)

    async def submit(self, spec: dict[str, Any] = TASK, request_id: str = "", role: str = "user") -> Any:
        """Submit a job."""
        request = client_pb2.SubmitRequest(spec_json=json.dumps(spec), request_id=request_id)
        return await self.call("Submit", request, role)

    async def job(self, wanted: str) -> Any:
        """A job as clients see it."""
        return await self.call("GetJob", client_pb2.JobRequest(job=wanted))

    async def until(self, what: Callable[[], Awaitable[Any]]) -> Any:
        """The first true value of `what()`."""
        async with asyncio.timeout(PATIENCE_S):
            while not (value := await what()):  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.02)
            return value


class Peer:
    """One stream of an agent or a site."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.heard: list[Any] = []

    async def say(self, message: Any) -> None:
        """Send a message."""
        await self.call.write(message)

    async def hear(self, kind: str) -> Any:
        """The next command of that kind; others on the way are kept in `heard`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                command = await self.call.read()
                assert command is not grpc.aio.EOF, f"the stream ended before {kind!r}: {self.heard}"
                self.heard.append(command)
                if command.WhichOneof("body") == kind:
                    return getattr(command, kind)

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended."""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(grpc.RpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()


class FakeAgent(Peer):
    """An agent of node `node` with one device."""

    @classmethod
    async def connect(
        cls, service: Service, node: str = "n1", instance: str = "a1", site: str = "s1", epoch: int = 0
    ) -> FakeAgent:
        agent = cls(AgentServiceStub(service.channel).Connect(metadata=service.metadata("agent")))
        device = common_pb2.Device(id="cpu:0", kind="cpu", model="test", memory_bytes=2**33, cores=1)
        hello = agent_pb2.AgentHello(
            node=node, site=site, instance=instance, devices=[device], address="127.0.0.1", epoch=epoch
        )
        await agent.say(agent_pb2.AgentMessage(hello=hello))
        return agent

    async def lend(self) -> int:
        """Offer the device; the epoch of the lease that follows."""
        await self.say(agent_pb2.AgentMessage(report=agent_pb2.NodeReport(spare_devices=["cpu:0"], source="host")))
        return int((await self.hear("granted")).epoch)


class FakeSite(Peer):
    """A site."""

    @classmethod
    async def connect(cls, service: Service, site: str = "s1", instance: str = "i1") -> FakeSite:
        session = cls(SiteServiceStub(service.channel).Session(metadata=service.metadata("site")))
        hello = site_pb2.SiteHello(
            site=site, instance=instance, ray_address="127.0.0.1:6379", ray_token="secret", ray_version="2.60.0"
        )
        await session.say(site_pb2.SiteMessage(hello=hello))
        return session


@contextlib.asynccontextmanager
async def serving(url: str, tls: TlsFiles | None = None, recheck_s: float = 15.0) -> AsyncIterator[Service]:
    """All services on a free port of this machine."""
    store, clock, causes, sessions = SqlStore(url), SystemClock(), Causes(), Sessions()
    tokens = Tokens(store.database)
    auth = Auth(tokens, clock)
    loop = ControlLoop(Inventory.restore(store.load()), store, sessions, clock)
    logs, gate = LogFeed(JobLogs(store.database), clock, linger_s=0.01), Gate(auth, recheck_s)
    server = RpcServer(
        AgentService(loop, sessions, clock, causes),
        SiteService(loop, sessions, logs, clock, causes),
        ClientService(loop, store, tokens, auth, logs, clock, causes),
        gate,
    )
    parts = [asyncio.create_task(loop.run()), asyncio.create_task(logs.run())]
    port = await server.start("127.0.0.1:0", tls)
    known = {token.name for token in tokens.list(clock.now_s())}
    secrets = {role.value: tokens.create(role.value, role, clock.now_s()) for role in TokenRole if role not in known}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Service(f"127.0.0.1:{port}", loop, tokens, secrets, gate, store, channel)
    await server.stop(0)
    for part in parts:
        await cancelled(part)
    store.close()


def database_in(folder: Path) -> str:
    """URL of a database in a folder."""
    return f"sqlite:///{folder / 'fallow.db'}"


def reason_of(error: grpc.aio.AioRpcError) -> common_pb2.Reason:
    """The reason that a refusal carries beside its text."""
    for key, value in error.trailing_metadata():
        if key == REASON_KEY:
            return common_pb2.Reason.FromString(value)
    raise AssertionError(f"no reason came with {error!r}")

"""A real gRPC server with AgentService, and real agents as processes, with a stand-in for the `ray` executable."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agents import process_tree
from protocol import agent_pb2 as pb

PATIENT_S = 60.0
"""How long to wait for something that takes a second on a machine of one's own."""


class Scheduler:
    """Keeps every message of every stream, and lets the test send commands."""

    def __init__(self) -> None:
        self.token = "fallow-agent-right"
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.messages: list[pb.AgentMessage] = []
        self.streams = 0
        self.port = 0
        self._out: asyncio.Queue[pb.AgentCommand] = asyncio.Queue()
        self._news = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        method = grpc.stream_stream_rpc_method_handler(
            self._connect, pb.AgentMessage.FromString, pb.AgentCommand.SerializeToString
        )
        self._server = grpc.aio.server()
        handler = grpc.method_handlers_generic_handler("fallow.v1.AgentService", {"Connect": method})
        self._server.add_generic_rpc_handlers((handler,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(0)
            self._server = None

    async def _connect(self, requests: AsyncIterator[pb.AgentMessage], context: Any) -> None:
        if ("authorization", f"Bearer {self.token}") not in tuple(context.invocation_metadata()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not known.")
        if self.refuse:
            await context.abort(*self.refuse)
        self.streams += 1
        self._out = out = asyncio.Queue()
        sender = asyncio.create_task(self._send(out, context))
        try:
            async for message in requests:
                async with self._news:
                    self.messages.append(message)
                    self._news.notify_all()
        finally:
            sender.cancel()

    async def _send(self, out: asyncio.Queue[pb.AgentCommand], context: Any) -> None:
        while True:
            await context.write(await out.get())

    def grant(self, epoch: int) -> None:
        self._out.put_nowait(pb.AgentCommand(granted=pb.LeaseGranted(epoch=epoch)))

    def join(self, epoch: int, address: str = "127.0.0.1:1", token: str = "secret") -> None:
        join = pb.JoinSite(epoch=epoch, ray_address=address, ray_token=token)
        self._out.put_nowait(pb.AgentCommand(join=join))

    def leave(self, epoch: int) -> None:
        self._out.put_nowait(pb.AgentCommand(leave=pb.LeaveSite(epoch=epoch, cause="released")))

    def reclaim(self, epoch: int, grace_s: float) -> None:
        asked = pb.ReclaimAsked(epoch=epoch, grace_s=grace_s, cause="maintenance")
        self._out.put_nowait(pb.AgentCommand(reclaim=asked))

    def all(self, kind: str) -> list[Any]:
        return [getattr(m, kind) for m in self.messages if m.WhichOneof("body") == kind]

    async def one(self, kind: str, accept: Callable[[Any], bool] = lambda said: True, after: int = 0) -> Any:
        """The first message of the kind that is accepted, among those after the first `after` messages."""

        def found() -> Any:
            bodies = (getattr(m, kind) for m in self.messages[after:] if m.WhichOneof("body") == kind)
            return next((body for body in bodies if accept(body)), None)

        async with asyncio.timeout(PATIENT_S), self._news:
            await self._news.wait_for(lambda: found() is not None)
        return found()


class AgentProcess:
    """One `python -m agents`."""

    def __init__(self, folder: Path, scheduler: Scheduler) -> None:
        self.folder, self.scheduler = folder, scheduler
        self.token_file = folder.with_name(f"{folder.name}.token")
        self.token_file.write_text(scheduler.token)
        self.ready_file = folder.with_name(f"{folder.name}.ready")
        self.log = folder.with_name(f"{folder.name}.log")
        self.shared = Path("/dev/shm") / folder.parent.name
        self.process: subprocess.Popen[bytes] | None = None

    def make_ray(self) -> Path:
        """A program that stands in for `ray`."""
        ray = self.folder.with_name("ray")
        ray.write_text(f"#!{sys.executable} -S\n{Path(__file__).with_name('fake_ray.py').read_text()}")
        ray.chmod(0o700)
        return ray

    def start(self, *options: str, node: str = "n1", fake_ray: str = "", source: str = "always") -> None:
        ray = self.make_ray()
        command = [
            *(sys.executable, "-m", "agents", "--node", node, "--site", "s", "--source", source),
            *("--scheduler", f"127.0.0.1:{self.scheduler.port}", "--token-file", str(self.token_file)),
            *("--dir", str(self.folder), "--cores", "1", "--look-s", "0.2", "--ready-file", str(self.ready_file)),
            *(() if "--ray" in options else ("--ray", str(ray))),
            *options,
        ]
        environment = {**os.environ, "FAKE_RAY": fake_ray, "FAKE_RAY_NOTES": str(self.folder.parent)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log, stdout=log, start_new_session=True)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def ours(self) -> list[int]:
        """Live processes of this agent's leases, keepers included, the agent not."""
        mark = f"{process_tree.MARK}={self.folder}".encode()
        return [p.pid for p in process_tree.belonging(self.pid, mark, (str(self.folder),))]

    async def say(self, **command: object) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(self.folder / "control.sock")
        writer.write(json.dumps(command).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await reader.readline())
        writer.close()
        return answer

    async def ended(self) -> int:
        assert self.process
        return await asyncio.to_thread(self.process.wait, PATIENT_S)

    def clean(self) -> None:
        self.shared.unlink(missing_ok=True)
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        for pid in self.ours() if self.process else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def until(true: Callable[[], bool], seconds: float = PATIENT_S) -> None:
    """Wait until something holds that nobody announces."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    found = process_tree.read(pid)
    return found is not None and found.state not in "ZX"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="fwt"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    served = Scheduler()
    await served.start()
    yield served
    await served.stop()


@pytest.fixture
def agent(place: Path, scheduler: Scheduler) -> Iterator[AgentProcess]:
    process = AgentProcess(place / "a", scheduler)
    yield process
    process.clean()
    print(process.log.read_text() if process.log.exists() else "")


async def lent(agent: AgentProcess, epoch: int = 1, **how: Any) -> set[int]:
    """Start the agent if need be, lend its node under `epoch`, and wait for the raylet. What runs there then."""
    if agent.process is None:
        agent.start(*how.pop("options", ()), **how)
    await agent.scheduler.one("report", lambda r: r.spare_devices)
    agent.scheduler.grant(epoch)
    agent.scheduler.join(epoch)
    started = await agent.scheduler.one("raylet_started", lambda s: s.epoch == epoch)
    assert not started.error
    return set(agent.ours())

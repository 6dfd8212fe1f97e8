"""The scheduler's side of the site session, for tests: a real gRPC server that records and commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from protocol import site_pb2, site_pb2_grpc

TOKEN = "fallow-site-test"


class StandIn(site_pb2_grpc.SiteServiceServicer):
    """Keeps every message of every session in `heard`; what is put in `to_say` goes to the newest session."""

    def __init__(self) -> None:
        self.heard: list[site_pb2.SiteMessage] = []
        self.hellos: list[site_pb2.SiteHello] = []
        self.sessions = 0
        self._commands: asyncio.Queue[site_pb2.SiteCommand] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen, on the same port as before after a `stop`."""
        self._server = grpc.aio.server()
        site_pb2_grpc.add_SiteServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Break every session and stop listening."""
        assert self._server is not None
        await self._server.stop(grace=None)

    async def Session(  # noqa: N802  the wire names it
        self, request_iterator: AsyncIterator[site_pb2.SiteMessage], context: Any
    ) -> AsyncIterator[site_pb2.SiteCommand]:
        """See site.proto."""
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token: create one with `fallow token create`")
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while True:
                yield await self._commands.get()
        finally:
            reader.cancel()

    async def _read(self, messages: AsyncIterator[site_pb2.SiteMessage]) -> None:
        async for message in messages:
            async with self._changed:
                if message.WhichOneof("body") == "hello":
                    self.hellos.append(message.hello)
                elif message.WhichOneof("body") != "heartbeat":
                    self.heard.append(message)
                self._changed.notify_all()

    def say(self, command: site_pb2.SiteCommand) -> None:
        """Send a command to the site as soon as it listens."""
        self._commands.put_nowait(command)

    async def until(self, holds: Callable[[], Any], limit_s: float = 60.0) -> Any:
        """Wait until something holds of what was heard, and return it."""
        async with asyncio.timeout(limit_s), self._changed:
            while not (found := holds()):
                await self._changed.wait()
            return found

    def bodies(self, kind: str) -> list[Any]:
        """Every message of a kind, in order."""
        return [getattr(message, kind) for message in self.heard if message.WhichOneof("body") == kind]

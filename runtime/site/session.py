"""The site's one stream to the scheduler: dialled by the site, and dialled again for as long as it takes."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from protocol import site_pb2, site_pb2_grpc
from protocol.clocks import PeerClock
from protocol.common_pb2 import Reason
from protocol.metadata import REASON_KEY, TOKEN_KEY
from runtime.site.outbox import Outbox

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
FIRST_BACK_OFF_S = 0.2
LONGEST_BACK_OFF_S = 10.0
REACHABLE_S = 5.0
"""An address that nothing answers at for so long counts as unreachable for now."""

ACCEPTED_S = 1.0
"""A stream that was not refused for so long is open, even if the scheduler has had nothing to say yet."""

STEADY_S = 30.0
"""A stream that held so long was good: the next break starts with the shortest wait again."""

Stream: TypeAlias = "grpc.aio.StreamStreamCall[site_pb2.SiteMessage, site_pb2.SiteCommand]"

_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)
_REFUSALS = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
)


class SessionRefused(Exception):
    """The scheduler will not have this site: a wrong token, mostly. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Which scheduler, and how to show it who we are."""

    address: str  # HOST:PORT
    token: str
    tls_ca: Path | None = None  # PEM files
    tls_cert: Path | None = None
    tls_key: Path | None = None


class Session:
    """Delivers the outbox in order and hands every command to `on_command`, one at a time."""

    def __init__(
        self,
        peer: Peer,
        hello: site_pb2.SiteHello,
        outbox: Outbox,
        on_command: Callable[[site_pb2.SiteCommand], None],
        chance: random.Random | None = None,
    ) -> None:
        self._peer = peer
        self._hello = hello
        self._outbox = outbox
        self._on_command = on_command
        self._chance = chance or random.Random()
        self._was_open = False
        self.opened = asyncio.Event()

    async def run(self) -> None:
        """Keep a stream open until cancelled.

        Raises `SessionRefused` if the scheduler refuses the very first one; later refusals are logged and tried
        again, since running jobs are worth more than an exit.
        """
        loop = asyncio.get_running_loop()
        back_off_s = FIRST_BACK_OFF_S
        while True:
            began_s = loop.time()
            try:
                await self._converse()
                problem = "the scheduler closed the stream"
            except TimeoutError:
                problem = "it does not answer"
            except grpc.aio.AioRpcError as error:
                problem = self._problem(error)
            if loop.time() - began_s > STEADY_S:
                back_off_s = FIRST_BACK_OFF_S
            wait_s = back_off_s * self._chance.uniform(0.5, 1.5)
            log.warning(
                "no session with the scheduler at %s (%s): again in %.1f s", self._peer.address, problem, wait_s
            )
            await asyncio.sleep(wait_s)
            back_off_s = min(back_off_s * 2, LONGEST_BACK_OFF_S)

    def _problem(self, error: grpc.aio.AioRpcError) -> str:
        problem = _reason(error)
        if error.code() in _REFUSALS and not self._was_open:
            raise SessionRefused(f"the scheduler at {self._peer.address} refuses this site: {problem}") from error
        return problem

    async def _converse(self) -> None:
        async with open_channel(self._peer) as channel:
            await asyncio.wait_for(channel.channel_ready(), REACHABLE_S)
            await self._converse_over(channel)

    async def _converse_over(self, channel: grpc.aio.Channel) -> None:
        stub: Any = site_pb2_grpc.SiteServiceStub(channel)  # as an asynchronous one, which the stubs do not know
        stream = stub.Session(metadata=((TOKEN_KEY, f"Bearer {self._peer.token}"),))
        writer = asyncio.create_task(self._write(stream))
        reader = asyncio.create_task(self._read(stream))
        try:
            done, _ = await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
            # A failed write only says that the call is over; why it is over, the reader knows.
            await (reader if writer in done else next(iter(done)))
        finally:
            stream.cancel()
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)

    async def _read(self, stream: Stream) -> None:
        accepted = asyncio.create_task(self._note_accepted(stream))
        theirs = PeerClock()
        try:
            async for command in stream:
                self._note_open()
                theirs.hear(command.sent_s, time.time())
                if command.assign.HasField("deadline_s"):
                    command.assign.deadline_s = theirs.here(command.assign.deadline_s)
                self._on_command(command)
        finally:
            accepted.cancel()

    async def _note_accepted(self, stream: Stream) -> None:
        await asyncio.sleep(ACCEPTED_S)
        if not stream.done():
            self._note_open()

    def _note_open(self) -> None:
        if not self._was_open:
            log.info("session with the scheduler at %s is open", self._peer.address)
        self._was_open = True
        self.opened.set()

    async def _write(self, stream: Stream) -> None:
        await stream.write(site_pb2.SiteMessage(hello=self._hello))
        for message in self._outbox.reopen():
            await stream.write(message)
        while True:
            try:
                message = await asyncio.wait_for(self._outbox.take(), HEARTBEAT_S)
            except TimeoutError:
                await stream.write(site_pb2.SiteMessage(heartbeat=site_pb2.SiteHeartbeat()))
                continue
            await stream.write(message)
            self._outbox.taken(message)


def open_channel(peer: Peer) -> grpc.aio.Channel:
    """A channel to the scheduler: with TLS if an authority is given. Raises OSError if a file cannot be read."""
    if peer.tls_ca is None:
        return grpc.aio.insecure_channel(peer.address, options=_OPTIONS)
    authority, key, certificate = (
        file.read_bytes() if file else None for file in (peer.tls_ca, peer.tls_key, peer.tls_cert)
    )
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.aio.secure_channel(peer.address, credentials, options=_OPTIONS)


def _reason(error: grpc.aio.AioRpcError) -> str:
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == REASON_KEY and isinstance(value, bytes):
            reason = Reason.FromString(value)
            return f"{reason.message} {reason.remedy}".strip()
    return error.details() or error.code().name

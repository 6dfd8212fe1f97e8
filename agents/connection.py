"""The one stream that an agent dials to the scheduler, kept up for as long as the agent lives."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from protocol import agent_pb2 as pb

log = logging.getLogger("fallow.agent")

_METHOD = "/fallow.v1.AgentService/Connect"
_CONNECT_S = 10.0
_SETTLED_S = 5.0
"""A message counts as delivered, and a stream as good, when the stream has lived this long since."""

_SECOND_AGENT_S = 30.0
"""How long to try while another agent of the node is connected: a killed predecessor may not be forgotten yet."""

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # so that an attempt does not inherit the back-off of the one before
)

_HOPELESS = {
    grpc.StatusCode.UNAUTHENTICATED: "Give a token of role agent in --token-file (`fallow token create --role agent`).",
    grpc.StatusCode.PERMISSION_DENIED: "Give a token of role agent in --token-file.",
    grpc.StatusCode.INVALID_ARGUMENT: "Correct the agent's options.",
    grpc.StatusCode.FAILED_PRECONDITION: "Correct the agent's options.",
    grpc.StatusCode.UNIMPLEMENTED: "Is there a Fallow scheduler of this version at --scheduler?",
}


class Refused(Exception):
    """The scheduler will not have this agent, and trying again will not help."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where the scheduler is and how to be known to it. With any TLS file the channel is encrypted."""

    address: str
    token_file: Path
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def channel(self) -> grpc.aio.Channel:
        """A new channel. Raises OSError if a TLS file cannot be read."""
        if not (self.tls_ca or self.tls_cert):
            return grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        ca, key, cert = (path.read_bytes() if path else None for path in (self.tls_ca, self.tls_key, self.tls_cert))
        credentials = grpc.ssl_channel_credentials(ca, key, cert)
        return grpc.aio.secure_channel(self.address, credentials, options=_OPTIONS)

    def token(self) -> str:
        """The token, read anew each time so that it can be replaced. Raises OSError."""
        return self.token_file.read_text().strip()


def pause_s(failures: int, chance: float) -> float:
    """How long to wait after so many failures in a row: doubling up to 10 s, spread by `chance` in [0, 1)."""
    return min(10.0, 0.5 * 2.0 ** min(failures, 10)) * (0.5 + chance / 2)


async def _taken_from(outbox: asyncio.Queue[pb.AgentMessage | None]) -> AsyncIterator[pb.AgentMessage]:
    while (message := await outbox.get()) is not None:
        message.sent_s = time.time()
        yield message


async def _connect(channel: grpc.aio.Channel) -> None:
    """Wait until the channel is up. Raises OSError: nobody answers."""
    async with asyncio.timeout(_CONNECT_S):
        state = channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                raise ConnectionError("nobody answers there, or not with the expected encryption")
            await channel.wait_for_state_change(state)
            state = channel.get_state()


class Connection:
    """Dials, sends, receives, and dials again.

    `opening` gives the first messages of every stream; they must tell the whole state, for what was sent on a broken
    stream is lost, except messages sent with `keep`, which are repeated until their stream has settled.
    """

    def __init__(
        self,
        peer: Peer,
        opening: Callable[[], Sequence[pb.AgentMessage]],
        on_command: Callable[[pb.AgentCommand], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.peer, self._opening, self._on_command, self._chance = peer, opening, on_command, chance
        self.accepted = asyncio.Event()
        self.connected = False
        self._finishing = False
        self._outbox: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
        self._kept: list[tuple[float, pb.AgentMessage]] = []
        self._opened_at = 0.0
        self._first_try_at: float | None = None

    @property
    def kept(self) -> tuple[pb.AgentMessage, ...]:
        """Messages that may not have arrived yet, oldest first."""
        return tuple(message for _, message in self._kept)

    def send(self, message: pb.AgentMessage, keep: bool = False) -> None:
        """Send now if there is a stream. With `keep`, later if there is none."""
        self._forget_delivered()
        if keep:
            self._kept.append((time.monotonic(), message))
        if self.connected:
            self._outbox.put_nowait(message)

    async def run(self) -> None:
        """Keep the stream up until cancelled or finished. Raises `Refused` if the first contact is refused for good."""
        failures = 0
        self._first_try_at = time.monotonic()
        while True:
            problem = await self._attempt()
            if self._finishing:
                return
            failures = 0 if problem is None else failures + 1
            pause = pause_s(failures, self._chance())
            if problem:
                log.warning(
                    "no stream to the scheduler at %s: %s; next try in %.1f s", *(self.peer.address, problem, pause)
                )
            await asyncio.sleep(pause)

    async def _attempt(self) -> str | None:
        """One stream from opening to end. None if it had settled, else what went wrong."""
        self._opened_at = time.monotonic()
        try:
            metadata = (("authorization", f"Bearer {self.peer.token()}"),)
            async with self.peer.channel() as channel:
                await self._stream(channel, metadata)
            problem = "the scheduler closed it"
        except grpc.aio.AioRpcError as error:
            self._check_hopeless(error)
            problem = f"{error.code().name}: {error.details()}"
        except OSError as error:
            problem = str(error) or f"no answer within {_CONNECT_S:g} s"
        finally:
            self.connected = False
        return None if time.monotonic() - self._opened_at >= _SETTLED_S and self.accepted.is_set() else problem

    async def _stream(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        await _connect(channel)
        self._open()
        connect: grpc.aio.StreamStreamMultiCallable[pb.AgentMessage, pb.AgentCommand] = channel.stream_stream(
            _METHOD,
            request_serializer=pb.AgentMessage.SerializeToString,
            response_deserializer=pb.AgentCommand.FromString,
        )
        call = connect(_taken_from(self._outbox), metadata=metadata)
        settler = asyncio.create_task(self._settle())
        try:
            async for command in call:
                self.accepted.set()
                self._on_command(command)
        finally:
            settler.cancel()
            call.cancel()

    def _open(self) -> None:
        self._opened_at = time.monotonic()
        self._outbox = asyncio.Queue()
        self.connected = True
        for message in (*self._opening(), *self.kept):
            self._outbox.put_nowait(message)
        self._kept = [(self._opened_at, message) for message in self.kept]

    async def _settle(self) -> None:
        await asyncio.sleep(1.0)  # a refusal would have come by now
        self.accepted.set()
        await asyncio.sleep(_SETTLED_S)
        self._forget_delivered()

    def _forget_delivered(self) -> None:
        if self.connected:
            self._kept = [kept for kept in self._kept if time.monotonic() - kept[0] < _SETTLED_S]

    def _check_hopeless(self, error: grpc.aio.AioRpcError) -> None:
        tried_s = time.monotonic() - (self._first_try_at or 0.0)
        if self.accepted.is_set():
            return
        if error.code() is grpc.StatusCode.ALREADY_EXISTS and tried_s > _SECOND_AGENT_S:
            raise Refused(f"--node: {error.details()}")
        if error.code() in _HOPELESS:
            raise Refused(f"the scheduler at {self.peer.address} says: {error.details()} {_HOPELESS[error.code()]}")

    def finish(self) -> None:
        """Let `run` end once everything has been written and the scheduler has read it."""
        self._finishing = True
        self._outbox.put_nowait(None)

"""Frames between gateway, engines and shards: a fixed header, a bounded body, a shared secret proved at connect.

    magic "FW" | version | kind | body length (u32) | call (u64) | body

Little-endian. Bodies are JSON or raw tensors (`expert_calls`), never pickles. A server opens with a CHALLENGE of 16
random bytes; the client answers HELLO with their HMAC-SHA256 under the job's secret; WELCOME follows, or the
connection closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

HEADER = struct.Struct("<2sBBIQ")
MAGIC = b"FW"
VERSION = 1
MAX_BODY_BYTES = 1 << 28
"""No frame is larger: a prefill chunk of 8192 tokens at width 8192 in fp32."""
MAX_HELLO_BYTES = 256
"""What a peer may send before it has proved that it knows the secret."""
HELLO_TIMEOUT_S = 5.0


class Kind(IntEnum):
    """What a frame's body is."""

    CHALLENGE = 1
    HELLO = 2
    WELCOME = 3
    CALL = 4
    REPLY = 5
    FAULT = 6  # UTF-8 text: why a call could not be answered
    JSON = 7
    PAGE = 8


class WireError(ConnectionError):
    """The peer does not speak this protocol, broke its bounds, or does not know the secret."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message; `call` ties a reply to its call."""

    kind: Kind
    call: int
    body: bytearray | bytes | memoryview

    def json(self) -> dict[str, Any]:
        """The body of a JSON frame. Raises `WireError` if it is anything but an object."""
        try:
            value = json.loads(bytes(self.body))
        except ValueError as error:
            raise WireError(f"a {self.kind.name} frame does not hold JSON: {error}") from error
        if self.kind is not Kind.JSON or not isinstance(value, dict):
            raise WireError(f"expected a JSON object, got a {self.kind.name} frame")
        return value


def header(kind: Kind, call: int, length: int) -> bytes:
    """The 16 bytes before a body of `length` bytes."""
    if length > MAX_BODY_BYTES:
        raise WireError(f"a frame of {length} bytes is over the limit of {MAX_BODY_BYTES}: send smaller batches")
    return HEADER.pack(MAGIC, VERSION, kind, length, call)


def parse_header(data: bytes | bytearray | memoryview, limit: int = MAX_BODY_BYTES) -> tuple[Kind, int, int]:
    """(kind, body length, call) of a header. Raises `WireError` if it is not one or announces over `limit` bytes."""
    magic, version, kind, length, call = HEADER.unpack(data)
    if magic != MAGIC or version != VERSION:
        raise WireError("the peer speaks another protocol: check that both sides run the same version of Fallow")
    if length > limit:
        raise WireError(f"the peer announced a frame of {length} bytes, over the limit of {limit}")
    try:
        return Kind(kind), length, call
    except ValueError as error:
        raise WireError(f"the peer sent a frame of unknown kind {kind}") from error


def encode(kind: Kind, call: int, body: bytes) -> bytes:
    """A whole frame as bytes, for small bodies."""
    return header(kind, call, len(body)) + body


def encode_json(message: dict[str, Any]) -> bytes:
    """A JSON frame."""
    return encode(Kind.JSON, 0, json.dumps(message, separators=(",", ":")).encode())


class FrameReader:
    """Puts frames together from whatever a socket gives, blocking or not.

    With `reuses` a frame's body is good only until the next `read`: all share one piece of memory, which spares a
    data plane the fresh pages of each.
    """

    def __init__(self, limit: int = MAX_BODY_BYTES, reuses: bool = False) -> None:
        self._limit = limit
        self._reuses = reuses
        self._room = bytearray()
        self._head = bytearray(HEADER.size)
        self._parsed: tuple[Kind, int, int] | None = None
        self._into = memoryview(self._head)
        self._body: bytearray | memoryview = bytearray()

    def read(self, sock: socket.socket) -> Frame | None:
        """The next whole frame; None if the socket has no more for now. Raises `ConnectionError` when it closed."""
        while True:
            if self._into.nbytes:
                try:
                    count = sock.recv_into(self._into)
                except (BlockingIOError, InterruptedError):
                    return None
                if count == 0:
                    raise ConnectionResetError("the peer closed the connection")
                self._into = self._into[count:]
                continue
            if self._parsed is not None:
                return self._finish(*self._parsed)
            self._parsed = parse_header(self._head, self._limit)
            self._body = self._memory(self._parsed[1])
            self._into = memoryview(self._body)

    def _memory(self, length: int) -> bytearray | memoryview:
        if not self._reuses:
            return bytearray(length)
        if length > len(self._room):
            self._room = bytearray(length)
        return memoryview(self._room)[:length]

    def _finish(self, kind: Kind, length: int, call: int) -> Frame:
        frame = Frame(kind, call, self._body)
        self._parsed = None
        self._into = memoryview(self._head)
        return frame


def _proof(secret: bytes, challenge: bytes | bytearray) -> bytes:
    return hmac.new(secret, bytes(challenge), "sha256").digest()


def _expect(frame: Frame | None, kind: Kind) -> Frame:
    if frame is None or frame.kind is not kind:
        raise WireError(f"expected {kind.name} while connecting")
    return frame


def connect(address: tuple[str, int], secret: bytes, timeout_s: float = HELLO_TIMEOUT_S) -> socket.socket:
    """A connected, authenticated, blocking socket. Raises `OSError` (also `WireError`) if that fails."""
    sock = socket.create_connection(address, timeout=timeout_s)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = FrameReader(MAX_HELLO_BYTES)
        challenge = _expect(reader.read(sock), Kind.CHALLENGE).body
        sock.sendall(encode(Kind.HELLO, 0, _proof(secret, challenge)))
        _expect(reader.read(sock), Kind.WELCOME)
        sock.settimeout(None)
        return sock
    except BaseException:
        sock.close()
        raise


def welcome(sock: socket.socket, secret: bytes, timeout_s: float = HELLO_TIMEOUT_S) -> None:
    """Check an accepted connection's secret. Raises `OSError` (also `WireError`); the caller closes the socket."""
    sock.settimeout(timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    challenge = os.urandom(16)
    sock.sendall(encode(Kind.CHALLENGE, 0, challenge))
    proof = _expect(FrameReader(MAX_HELLO_BYTES).read(sock), Kind.HELLO).body
    if not hmac.compare_digest(bytes(proof), _proof(secret, challenge)):
        raise WireError("a peer tried to connect with a wrong secret")
    sock.sendall(encode(Kind.WELCOME, 0, b""))
    sock.settimeout(None)


def hang_up(sock: socket.socket) -> None:
    """Close a socket and wake whatever thread waits on it; closing alone would not."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


async def read_frame(reader: asyncio.StreamReader, limit: int = MAX_BODY_BYTES) -> Frame:
    """The next frame of an asyncio stream. Raises `ConnectionError` or `asyncio.IncompleteReadError` at its end."""
    kind, length, call = parse_header(await reader.readexactly(HEADER.size), limit)
    return Frame(kind, call, await reader.readexactly(length))


async def open_stream(
    address: tuple[str, int], secret: bytes, timeout_s: float = HELLO_TIMEOUT_S
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`connect` for asyncio."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(*address)
        try:
            challenge = _expect(await read_frame(reader, MAX_HELLO_BYTES), Kind.CHALLENGE).body
            writer.write(encode(Kind.HELLO, 0, _proof(secret, challenge)))
            _expect(await read_frame(reader, MAX_HELLO_BYTES), Kind.WELCOME)
        except BaseException:
            writer.close()
            raise
    return reader, writer

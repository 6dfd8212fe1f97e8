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
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

HEADER = struct.Struct("<2sBBIQ")
MAGIC = b"FW"
VERSION = 1
MAX_BODY_BYTES = 1 << 28
"""No frame is larger: a prefill chunk of 8192 tokens at width 8192 in fp32."""
MAX_HELLO_BYTES = 256
"""What a peer may send before it has proved that it knows the secret."""
HELLO_TIMEOUT_S = 5.0
FIRST_ROOM_BYTES = 1 << 18
"""What a data plane's reader has room for until a larger frame comes."""


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


KINDS = {kind.value: kind for kind in Kind}


class WireError(ConnectionError):
    """The peer does not speak this protocol, broke its bounds, or does not know the secret."""


class Frame(NamedTuple):
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
    if kind not in KINDS:
        raise WireError(f"the peer sent a frame of unknown kind {kind}")
    return KINDS[kind], length, call


def encode(kind: Kind, call: int, body: bytes) -> bytes:
    """A whole frame as bytes, for small bodies."""
    return header(kind, call, len(body)) + body


def unsent(pieces: Sequence[bytes | memoryview], sent: int) -> Iterator[memoryview]:
    """What is left of pieces of bytes of which the first `sent` have gone."""
    for piece in pieces:
        if sent < len(piece):
            yield memoryview(piece)[sent:]
        sent = max(0, sent - len(piece))


def encode_json(message: dict[str, Any]) -> bytes:
    """A JSON frame."""
    return encode(Kind.JSON, 0, json.dumps(message, separators=(",", ":")).encode())


class FrameReader:
    """Puts frames together from whatever a socket gives, blocking or not.

    With `reuses` a frame's body is good only until the next `read`: all share one piece of memory, which spares a
    data plane the fresh pages of each, and head and body come with one call of the socket.
    """

    def __init__(self, limit: int = MAX_BODY_BYTES, reuses: bool = False) -> None:
        self._limit = limit
        self._reuses = reuses
        self._room = memoryview(bytearray(FIRST_ROOM_BYTES if reuses else 0))
        self._head = memoryview(bytearray(HEADER.size))
        self._ahead = memoryview(b"")  # received, of frames to come
        self._parsed: tuple[Kind, int, int] | None = None
        self._into = self._head
        self._body = self._room

    def read(self, sock: socket.socket, place: tuple[int, memoryview] | None = None) -> Frame | None:
        """The next whole frame; None if the socket has no more for now. Raises `ConnectionError` when it closed.

        `place`: a call, and the memory that is to be its REPLY's body if it has that length.
        """
        if self._parsed is None and not self._begin(sock, place):
            return None
        while self._into:
            count = self._receive(sock, [self._into], socket.MSG_WAITALL)
            if not count:
                return None
            self._into = self._into[count:]
        assert self._parsed is not None
        kind, _, call = self._parsed
        frame = Frame(kind, call, self._body)
        self._parsed, self._into, self._body = None, self._head, self._room
        return frame

    def divert(self, place: memoryview) -> None:
        """What comes no longer goes to a place, where a part of it may be already."""
        if self._body is place:
            self._body = memoryview(bytearray(place))
            self._into = self._body[len(place) - len(self._into) :]

    def _begin(self, sock: socket.socket, place: tuple[int, memoryview] | None) -> bool:
        """Receive a header, and as much of its body as comes with it; whether the header is whole."""
        guess = place[1] if place is not None else self._room
        got = 0
        while self._into:
            count = self._receive(sock, [self._into, guess])
            if not count:
                return False
            got = count - len(self._into)
            self._into = self._into[count:]
        kind, length, call = self._parsed = parse_header(self._head, self._limit)
        has = min(got, length)
        if got > has:
            self._ahead = memoryview(bytes(guess[has:got]))
        if place is not None and kind is Kind.REPLY and call == place[0] and length == len(guess):
            self._body = guess
        else:
            room = self._room
            self._body = self._memory(length)
            if guess is not room or self._room is not room:
                self._body[:has] = guess[:has]
        self._into = self._body[has:]
        return True

    def _receive(self, sock: socket.socket, into: list[memoryview], flags: int = 0) -> int:
        """How many bytes came; 0 if the socket has none for now."""
        if self._ahead:
            count = min(len(self._ahead), len(into[0]))
            into[0][:count], self._ahead = self._ahead[:count], self._ahead[count:]
            return count
        try:
            count = sock.recvmsg_into(into, 0, flags)[0]
        except (BlockingIOError, InterruptedError):
            return 0
        if not count:
            raise ConnectionResetError("the peer closed the connection")
        return count

    def _memory(self, length: int) -> memoryview:
        if not self._reuses:
            return memoryview(bytearray(length))
        if length > len(self._room):
            self._room = memoryview(bytearray(length))
        return self._room[:length]


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

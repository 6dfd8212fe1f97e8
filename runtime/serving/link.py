"""An engine's connection to one shard: non-blocking, several calls under way, late answers told from wanted ones."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Iterable

from runtime.serving import wire
from runtime.serving.routing import Address


class Link:
    """One authenticated connection. Any `OSError` from it means that it is of no more use: `close` it."""

    def __init__(self, shard: str, address: Address, sock: socket.socket) -> None:
        self.shard = shard
        self.address = address
        self.under_way: dict[int, float] = {}  # call id -> when it was sent
        self.was_blocked = False  # when it was last polled
        self._sock = sock
        self._sock.setblocking(False)
        self._reader = wire.FrameReader(reuses=True)
        self._out: deque[memoryview] = deque()
        self._places: dict[int, memoryview] = {}

    @classmethod
    def open(cls, shard: str, address: Address, secret: bytes, timeout_s: float) -> Link:
        """Connect to a shard. Raises `OSError`."""
        return cls(shard, address, wire.connect(address, secret, timeout_s))

    def fileno(self) -> int:
        """For poll."""
        return self._sock.fileno()

    @property
    def is_blocked(self) -> bool:
        """Whether the socket has not taken all that was sent."""
        return bool(self._out)

    def send(self, call: int, parts: list[bytes | memoryview], now_s: float) -> None:
        """Send a call, or queue what the socket does not take."""
        self.under_way[call] = now_s
        length = sum(map(len, parts))
        pieces = [wire.header(wire.Kind.CALL, call, length), *parts]
        if self._out:
            self._out.extend(map(memoryview, pieces))
            return
        try:
            sent = self._sock.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        if sent < wire.HEADER.size + length:
            self._out.extend(wire.unsent(pieces, sent))

    def flush(self) -> None:
        """Send more of what is queued."""
        while self._out:
            try:
                sent = self._sock.sendmsg(list(self._out)[:64])
            except BlockingIOError:
                return
            self._out = deque(wire.unsent(self._out, sent))

    def expect(self, call: int, place: memoryview) -> None:
        """A call's answer goes to this place if it is as long; said before anything is received."""
        self._places[call] = place

    def divert(self, call: int) -> None:
        """A call's answer comes with a body of its own after all."""
        place = self._places.pop(call, None)
        if place is not None:
            self._reader.divert(place)

    def receive(self) -> Iterable[wire.Frame]:
        """Every whole frame that has arrived, each good until the next; the socket is not asked for what is not due."""
        while (frame := self._reader.read(self._sock, self._next_place())) is not None:
            self.under_way.pop(frame.call, None)
            self._places.pop(frame.call, None)
            yield frame
            if not self.under_way:
                return

    def _next_place(self) -> tuple[int, memoryview] | None:
        """Of the oldest call, since a shard answers one after another."""
        oldest = next(iter(self.under_way), None)
        place = None if oldest is None else self._places.get(oldest)
        return None if oldest is None or place is None else (oldest, place)

    def oldest_s(self) -> float | None:
        """When the longest-running call was sent."""
        return min(self.under_way.values(), default=None)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.close()

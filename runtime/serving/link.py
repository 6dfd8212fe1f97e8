"""An engine's connection to one shard: non-blocking, several calls under way, late answers told from wanted ones."""

from __future__ import annotations

import contextlib
import select
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
        self._sock = sock
        self._sock.setblocking(False)
        self._reader = wire.FrameReader(reuses=True)
        self._out: deque[memoryview] = deque()

    @classmethod
    def open(cls, shard: str, address: Address, secret: bytes, timeout_s: float) -> Link:
        """Connect to a shard. Raises `OSError`."""
        return cls(shard, address, wire.connect(address, secret, timeout_s))

    def fileno(self) -> int:
        """For poll."""
        return self._sock.fileno()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self._out else 0)

    def send(self, call: int, parts: list[bytes | memoryview], now_s: float) -> None:
        """Queue a call and send what the socket takes."""
        head, (first, *rest) = wire.header(wire.Kind.CALL, call, sum(len(part) for part in parts)), parts
        self._out.extend(memoryview(part) for part in (b"".join((head, first)), *rest))
        self.under_way[call] = now_s
        self.flush()

    def flush(self) -> None:
        """Send more of what is queued."""
        while self._out:
            try:
                sent = self._sock.sendmsg(list(self._out)[:64])
            except BlockingIOError:
                return
            while self._out and sent >= self._out[0].nbytes:
                sent -= self._out.popleft().nbytes
            if self._out:
                self._out[0] = self._out[0][sent:]

    def receive(self) -> Iterable[wire.Frame]:
        """Every whole frame that has arrived, each good until the next; the socket is not asked for what is not due."""
        while (frame := self._reader.read(self._sock)) is not None:
            self.under_way.pop(frame.call, None)
            yield frame
            if not self.under_way:
                return

    def oldest_s(self) -> float | None:
        """When the longest-running call was sent."""
        return min(self.under_way.values(), default=None)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.close()

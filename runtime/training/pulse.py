"""A worker's pulse: one TCP stream of JSON lines to whoever runs the job, with what happens and a beat in between.

The kernel closes it when the worker's process dies, which is heard within milliseconds (Ray takes seconds to notice a
killed node); a worker that hangs falls silent. Commands do not travel here: those are actor calls.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

BEAT_S = 0.3
SILENT_S = 10.0
"""A worker that says nothing for so long is taken for dead, whatever others do; `hangs` notices most before."""
PREPARING_SILENT_S = 60.0
"""The same while it loads code and builds its model: nobody waits for it, and imports can hold Python's lock."""
REMEMBERED = 10_000
"""Events kept for a listener that comes (back) late."""

Event = dict[str, Any]


class Pulse:
    """The worker's end. `tell` may be called from any thread."""

    def __init__(self, address: str) -> None:
        self.secret = secrets.token_hex(16)
        self._events: deque[Event] = deque(maxlen=REMEMBERED)
        self._count = 0
        self._changed = threading.Condition()
        self._listener = socket.create_server((address, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="pulse", daemon=True).start()

    def tell(self, kind: str, **facts: Any) -> None:
        """Something happened; facts are JSON values."""
        with self._changed:
            self._count += 1
            self._events.append({"n": self._count, "kind": kind, **facts})
            self._changed.notify_all()

    @property
    def count(self) -> int:
        """Number of the last event."""
        return self._count

    def close(self) -> None:
        """Take no more listeners."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="pulse-listener", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(SILENT_S)
            try:
                hello = json.loads(connection.makefile("r").readline(4096))
                if not hmac.compare_digest(str(hello["secret"]), self.secret):
                    return
                self._send_all(connection, int(hello["after"]))
            except (OSError, ValueError, KeyError, TypeError):
                return  # the listener went away, or never was one of ours

    def _send_all(self, connection: socket.socket, after: int) -> None:
        while True:
            with self._changed:
                if self._count <= after:
                    self._changed.wait(BEAT_S)
                fresh = [e for e in self._events if e["n"] > after]
            after = fresh[-1]["n"] if fresh else after
            lines = fresh or [{}]
            connection.sendall("".join(json.dumps(line) + "\n" for line in lines).encode())


async def listen(
    address: str,
    port: int,
    secret: str,
    after: int = 0,
    patience_s: Callable[[], float] = lambda: SILENT_S,
    heard: Callable[[], None] = lambda: None,
) -> AsyncIterator[Event]:
    """A worker's events from number `after` + 1 on. `heard` is called for each, and for each beat.

    Raises ConnectionError when the worker is gone, or silent for longer than `patience_s()`.
    """
    reader, writer = await asyncio.open_connection(address, port, limit=1 << 20)
    try:
        writer.write(json.dumps({"secret": secret, "after": after}).encode() + b"\n")
        while True:
            line = await asyncio.wait_for(reader.readline(), patience_s())
            if not line:
                raise ConnectionError("the worker's process ended")
            heard()
            event = json.loads(line)
            if event:
                yield event
    except TimeoutError:
        raise ConnectionError(f"the worker said nothing for {patience_s():.0f} s") from None
    finally:
        writer.close()

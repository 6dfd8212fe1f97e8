"""What the site has to say, in order, while the scheduler may be away.

Two kinds of message. Progress, experts' loads and log lines only describe: of a job's progress, or loads, the newest
replaces the one that still waits, and old log lines make room. Everything else changes state and is never dropped. A
message that was written shortly before a stream broke may or may not have arrived, and the wire has no receipts; so the
facts of the last moments, and which raylets are ready, are said again to a new session.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from protocol import site_pb2

LOG_LIMIT = 2000
"""Log messages that may wait; older ones go first."""

UNCERTAIN_S = 30.0
"""A fact that was written so long ago, on a stream that held since, has arrived and been stored."""

REPLACED = ("progress", "expert_loads")

FactKey = tuple[str, str, int]


class _Said(NamedTuple):
    message: site_pb2.SiteMessage
    at_s: float


class Outbox:
    """An ordered queue of messages with one reader at a time."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._waiting: OrderedDict[int, site_pb2.SiteMessage] = OrderedDict()
        self._newest: dict[tuple[str, str], int] = {}  # (kind, job) -> number of its message that waits
        self._logs: deque[int] = deque()
        self._facts: OrderedDict[FactKey, _Said] = OrderedDict()  # oldest first
        self._ready: dict[FactKey, site_pb2.SiteMessage] = {}
        self._next = 0
        self._arrived = asyncio.Event()

    def put(self, message: site_pb2.SiteMessage) -> None:
        """Say it as soon as the scheduler listens."""
        body = message.WhichOneof("body") or ""
        if (number := self._newest.get((body, _job_of(message)))) is not None:
            self._waiting[number] = message
            return
        self._waiting[self._next] = message
        if body in REPLACED:
            self._newest[body, _job_of(message)] = self._next
        elif body == "log":
            self._logs.append(self._next)
            if len(self._logs) > LOG_LIMIT:
                del self._waiting[self._logs.popleft()]
        self._next += 1
        self._arrived.set()

    def reopen(self) -> list[site_pb2.SiteMessage]:
        """For a new session: what it must be told again, before anything that waits."""
        now_s = self._now_s()
        for key, said in self._facts.items():
            self._facts[key] = said._replace(at_s=now_s)
        return [*self._ready.values(), *(said.message for said in self._facts.values())]

    @property
    def has_waiting(self) -> bool:
        """Whether `take` would return at once."""
        return bool(self._waiting)

    async def take(self) -> site_pb2.SiteMessage:
        """Wait for the next message. It stays first until `taken`."""
        while not self.has_waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return next(iter(self._waiting.values()))

    def taken(self, message: site_pb2.SiteMessage) -> None:
        """The message was written to a stream."""
        number, first = next(iter(self._waiting.items()))
        if first is not message:  # a newer progress took its place meanwhile
            return
        del self._waiting[number]
        self._newest.pop((message.WhichOneof("body") or "", _job_of(message)), None)
        if message.WhichOneof("body") == "log":
            self._logs.popleft()
        self._remember(message)

    def _remember(self, message: site_pb2.SiteMessage) -> None:
        key = fact_key(message)
        if key is None:
            return
        self._facts.pop(key, None)
        self._ready.pop(key, None)
        if message.WhichOneof("body") == "node_ready":
            self._ready[key] = message
        else:
            self._facts[key] = _Said(message, self._now_s())
        self._drop_certain()

    def _drop_certain(self) -> None:
        while self._facts and next(iter(self._facts.values())).at_s < self._now_s() - UNCERTAIN_S:
            self._facts.popitem(last=False)


def fact_key(message: site_pb2.SiteMessage) -> FactKey | None:
    """What a message states a fact about; a later message about the same replaces it. None: it states none."""
    body = message.WhichOneof("body")
    if body in ("node_ready", "node_gone"):
        lease = message.node_ready.lease if body == "node_ready" else message.node_gone.lease
        return ("lease", lease.node, lease.epoch)
    if body == "worker":
        return ("worker", message.worker.worker, message.worker.lease.epoch)
    if body in ("reached", "refused"):
        return ("revision", _job_of(message), 0)
    if body in ("endpoint", "ended"):
        return (body, _job_of(message), 0)
    return None


def _job_of(message: site_pb2.SiteMessage) -> str:
    return str(getattr(getattr(message, message.WhichOneof("body") or ""), "job", ""))

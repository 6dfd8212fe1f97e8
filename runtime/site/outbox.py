"""What the site has to say, in order, while the scheduler may be away.

Two kinds of message. Progress and log lines only describe: of a job's progress the newest replaces the one that still
waits, and old log lines make room. Everything else changes state and is never dropped. A message that was written when
the stream broke may or may not have arrived, and the wire has no receipts; so facts that still hold (a raylet is
ready, a worker runs, a revision is reached, a job has ended) are said again to every new session. They are idempotent.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from protocol import site_pb2

LOG_LIMIT = 2000
"""Log messages that may wait; older ones go first."""

FACT_LIMIT = 5_000
"""Facts that are kept for the next session; the oldest go first."""

FactKey = tuple[str, str, int]


class Outbox:
    """An ordered queue of messages with one reader at a time."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, site_pb2.SiteMessage] = OrderedDict()
        self._progress: dict[str, int] = {}  # job -> number of its progress message that waits
        self._logs: deque[int] = deque()
        self._facts: OrderedDict[FactKey, site_pb2.SiteMessage] = OrderedDict()
        self._next = 0
        self._arrived = asyncio.Event()

    def put(self, message: site_pb2.SiteMessage) -> None:
        """Say it as soon as the scheduler listens."""
        body = message.WhichOneof("body")
        if body == "progress" and (number := self._progress.get(message.progress.job)) is not None:
            self._waiting[number] = message
            return
        self._waiting[self._next] = message
        if body == "progress":
            self._progress[message.progress.job] = self._next
        elif body == "log":
            self._logs.append(self._next)
            if len(self._logs) > LOG_LIMIT:
                del self._waiting[self._logs.popleft()]
        self._next += 1
        self._arrived.set()

    def reopen(self) -> list[site_pb2.SiteMessage]:
        """For a new session: the facts that hold as of the last message taken, oldest first."""
        return list(self._facts.values())

    async def take(self) -> site_pb2.SiteMessage:
        """Wait for the next message. It stays first until `taken`."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return next(iter(self._waiting.values()))

    def taken(self, message: site_pb2.SiteMessage) -> None:
        """The message was written to a stream."""
        number, first = next(iter(self._waiting.items()))
        if first is not message:  # a newer progress took its place meanwhile
            return
        del self._waiting[number]
        if message.WhichOneof("body") == "progress":
            self._progress.pop(message.progress.job, None)
        elif message.WhichOneof("body") == "log":
            self._logs.popleft()
        self._remember(message)

    def _remember(self, message: site_pb2.SiteMessage) -> None:
        key = fact_key(message)
        if key is None:
            return
        if message.WhichOneof("body") == "ended":
            self._drop_job(message.ended.job)
        self._facts.pop(key, None)
        self._facts[key] = message
        if len(self._facts) > FACT_LIMIT:
            self._facts.popitem(last=False)

    def _drop_job(self, job: str) -> None:
        stale = [key for key, message in self._facts.items() if _job_of(message) == job]
        for key in stale:
            del self._facts[key]


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

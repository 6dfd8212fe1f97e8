"""The service for sites: what happened there becomes events and log lines, assignments go back on the same stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from protocol.site_pb2 import SiteCommand, SiteMessage
from protocol.site_pb2_grpc import SiteServiceServicer
from scheduler.clock import Clock
from scheduler.control_loop import ControlLoop
from scheduler.domain.cluster import LeaseKey
from scheduler.domain.events import Event, SiteConnected, SiteDisconnected
from scheduler.domain.reasons import Reason, Refused
from scheduler.rpc import checks, reports
from scheduler.rpc.causes import Causes
from scheduler.rpc.log_feed import LogFeed
from scheduler.rpc.sessions import Sessions
from scheduler.rpc.streams import converse, first


class SiteService(SiteServiceServicer):
    """One session a site; see protocol/site.proto."""

    def __init__(self, loop: ControlLoop, sessions: Sessions, logs: LogFeed, clock: Clock, causes: Causes) -> None:
        self._loop = loop
        self._sessions = sessions
        self._logs = logs
        self._clock = clock
        self._causes = causes

    async def Session(self, request_iterator: AsyncIterator[SiteMessage], context: Any) -> AsyncIterator[SiteCommand]:
        """From hello to the end of the stream, however it ends."""
        message = await first(request_iterator)
        hello = reports.site_hello(message, self._clock.now_s(), self._causes.next("site"))
        session = self._sessions.sites.open(hello.site, hello.instance)
        try:
            await self._loop.apply(hello)
            async for command in converse(session, self._read(hello, request_iterator)):
                command.sent_s = self._clock.now_s()
                yield command
        finally:
            if self._sessions.sites.close(session):
                self._disconnected(hello)

    async def _read(self, hello: SiteConnected, messages: AsyncIterator[SiteMessage]) -> None:
        source = f"site:{hello.site}"
        async for message in messages:
            match message.WhichOneof("body"):
                case "heartbeat":
                    pass  # keeps proxies between us from closing a silent stream
                case "log":
                    self._logs.append(checks.name("log.job", message.log.job), message.log.worker, message.log.lines)
                case _:
                    event = reports.site_event(message, self._clock.now_s(), self._causes.next(source))
                    self._check_site(hello.site, event)
                    self._loop.post(event)

    def _check_site(self, site: str, event: Event) -> None:
        """A site speaks of its own leases only. Raises `Refused`."""
        key = getattr(event, "lease", None)
        lease = self._loop.inventory.leases.get(key) if isinstance(key, LeaseKey) else None
        if lease is not None and lease.site != site:
            message = f"Site {site!r} speaks of lease {key}, which is of site {lease.site!r}."
            raise Refused(Reason("forbidden", message, "Give each site a name and a Ray cluster of its own."))

    def _disconnected(self, hello: SiteConnected) -> None:
        self._loop.post(
            SiteDisconnected(
                at_s=self._clock.now_s(),
                cause_id=self._causes.next(f"site:{hello.site}"),
                site=hello.site,
                instance=hello.instance,
            )
        )

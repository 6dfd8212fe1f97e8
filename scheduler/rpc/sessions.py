"""Open streams of agents and sites: the executor that speaks gRPC.

What is sent to a peer that is away is dropped: the loop sends everything that still holds when the peer is back.
All calls come from the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from protocol.agent_pb2 import AgentCommand
from protocol.site_pb2 import SiteCommand
from scheduler.domain.cluster import Lease, LeaseKey, Site
from scheduler.domain.jobs import Job
from scheduler.domain.plan import Assign
from scheduler.domain.reasons import Reason, Refused
from scheduler.rpc import convert

C = TypeVar("C", AgentCommand, SiteCommand)

MOST_WAITING = 10_000
"""Commands that wait for one peer; one that takes none for so long is cut off, and hears all when it is back."""


class Session(Generic[C]):
    """The way to one peer, for the life of one stream."""

    def __init__(self, peer: str, instance: str) -> None:
        self.peer = peer
        self.instance = instance
        self._waiting: asyncio.Queue[C | BaseException | None] = asyncio.Queue()

    def send(self, command: C) -> None:
        """Put a command in the queue; ends the session if the peer does not read."""
        if self._waiting.qsize() >= MOST_WAITING:
            message = f"{self.peer} has not taken {MOST_WAITING} commands."
            self.end(Refused(Reason("too_slow", message, "Connect again: everything that holds is sent anew.")))
        else:
            self._waiting.put_nowait(command)

    def end(self, error: BaseException | None = None) -> None:
        """Let `commands` stop after what waits now, or raise `error` there."""
        self._waiting.put_nowait(error)

    async def commands(self) -> AsyncIterator[C]:
        """What is to be sent, until the session is ended."""
        while True:
            command = await self._waiting.get()
            if command is None:
                return
            if isinstance(command, BaseException):
                raise command
            yield command


class Peers(Generic[C]):
    """The sessions of one kind of peer, one a name."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._sessions: dict[str, Session[C]] = {}

    def open(self, peer: str, instance: str) -> Session[C]:
        """A session for the peer. The same process coming back takes its old session's place; while another process
        of that name is connected, raises `Refused` (already_registered)."""
        old = self._sessions.get(peer)
        if old is not None and old.instance != instance:
            raise Refused(
                Reason(
                    "already_registered",
                    f"Another {self._kind} is connected as {peer!r}.",
                    f"Stop that {self._kind} first, or give this one another name.",
                )
            )
        if old is not None:
            message = f"{peer!r} has connected anew."
            old.end(Refused(Reason("replaced_session", message, "Use the newer stream.")))
        session: Session[C] = Session(peer, instance)
        self._sessions[peer] = session
        return session

    def close(self, session: Session[C]) -> bool:
        """Forget the session. Whether it was the peer's current one."""
        if self._sessions.get(session.peer) is not session:
            return False
        del self._sessions[session.peer]
        return True

    def send(self, peer: str, command: C) -> None:
        """Send if the peer is there."""
        session = self._sessions.get(peer)
        if session is not None:
            session.send(command)

    def end_all(self) -> None:
        """Let every session end, because the scheduler stops."""
        for session in self._sessions.values():
            session.end(Refused(Reason("stopping", "The scheduler is stopping.", "Connect again in a moment.")))


class Sessions:
    """Implements `Executor` over the open streams."""

    def __init__(self) -> None:
        self.agents: Peers[AgentCommand] = Peers("agent")
        self.sites: Peers[SiteCommand] = Peers("site")

    def grant(self, lease: Lease) -> None:
        """See `Executor`."""
        self.agents.send(lease.key.node, convert.granted(lease))

    def join(self, lease: Lease, site: Site) -> None:
        """See `Executor`."""
        self.agents.send(lease.key.node, convert.join(lease, site))

    def assign(self, job: Job, step: Assign, leases: tuple[Lease, ...], lost_workers: tuple[str, ...]) -> None:
        """See `Executor`."""
        command = convert.assignment(job, step, leases, lost_workers)
        site = leases[0].site if leases else job.site
        if site:
            self.sites.send(site, command)

    def end(self, job: Job, cause: str) -> None:
        """See `Executor`. A job that never had a site runs nowhere."""
        if job.site:
            self.sites.send(job.site, convert.end(job, cause))

    def leave(self, lease: Lease, cause: str) -> None:
        """See `Executor`."""
        self.agents.send(lease.key.node, convert.leave(lease, cause))

    def reclaim(self, lease: Lease, grace_s: float, cause: str) -> None:
        """See `Executor`."""
        self.agents.send(lease.key.node, convert.reclaim(lease, grace_s, cause))

    def forget(self, key: LeaseKey, site: str) -> None:
        """See `Executor`."""
        self.sites.send(site, convert.forget(key))

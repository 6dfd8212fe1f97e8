"""The service for node agents: their reports become events, the executor's commands go back on the same stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from protocol.agent_pb2 import AgentCommand, AgentMessage
from protocol.agent_pb2_grpc import AgentServiceServicer
from protocol.clocks import PeerClock
from scheduler.clock import Clock
from scheduler.control_loop import ControlLoop
from scheduler.domain.events import AgentConnected, AgentDisconnected
from scheduler.rpc import reports
from scheduler.rpc.causes import Causes
from scheduler.rpc.sessions import Sessions
from scheduler.rpc.streams import converse, first


class AgentService(AgentServiceServicer):
    """One stream an agent; see protocol/agent.proto."""

    def __init__(self, loop: ControlLoop, sessions: Sessions, clock: Clock, causes: Causes) -> None:
        self._loop = loop
        self._sessions = sessions
        self._clock = clock
        self._causes = causes

    async def Connect(self, request_iterator: AsyncIterator[AgentMessage], context: Any) -> AsyncIterator[AgentCommand]:
        """From hello to the end of the stream, however it ends."""
        message = await first(request_iterator)
        hello = reports.agent_hello(message, self._clock.now_s(), self._causes.next("agent"))
        theirs = PeerClock()
        theirs.hear(message.sent_s, hello.at_s)
        session = self._sessions.agents.open(hello.node, hello.instance)
        try:
            await self._loop.apply(hello)
            async for command in converse(session, self._read(hello, theirs, request_iterator)):
                yield command
        finally:
            if self._sessions.agents.close(session):
                self._disconnected(hello)

    async def _read(self, hello: AgentConnected, theirs: PeerClock, messages: AsyncIterator[AgentMessage]) -> None:
        source = f"agent:{hello.node}"
        async for message in messages:
            now_s, cause_id = self._clock.now_s(), self._causes.next(source)
            theirs.hear(message.sent_s, now_s)
            self._loop.post(reports.agent_event(hello.node, hello.instance, message, theirs, now_s, cause_id))

    def _disconnected(self, hello: AgentConnected) -> None:
        self._loop.post(
            AgentDisconnected(
                at_s=self._clock.now_s(),
                cause_id=self._causes.next(f"agent:{hello.node}"),
                node=hello.node,
                instance=hello.instance,
            )
        )

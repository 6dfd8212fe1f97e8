"""What the streams of agents and sites have in common: a hello, then both sides speak when they have something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from scheduler.domain.reasons import Reason, Refused
from scheduler.rpc.sessions import C, Session

M = TypeVar("M")

HELLO_TIMEOUT_S = 30.0
"""A peer that has not said hello for so long is cut off."""


async def first(requests: AsyncIterator[M]) -> M:
    """The stream's first message. Raises `Refused` if none comes."""
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            return await anext(aiter(requests))
    except (StopAsyncIteration, TimeoutError):
        remedy = "Say hello first: use the same version of Fallow on both sides."
        raise Refused(Reason("malformed_message", "The stream opened without a hello.", remedy)) from None


async def converse(session: Session[C], reading: Coroutine[Any, Any, None]) -> AsyncIterator[C]:
    """The session's commands while `reading` takes in what the peer says; ends with either, or raises its error."""
    reader = asyncio.create_task(reading)
    reader.add_done_callback(lambda task: session.end(None if task.cancelled() else task.exception()))
    try:
        async for command in session.commands():
            yield command
    finally:
        reader.cancel()

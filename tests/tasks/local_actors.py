"""`Actors` without Ray: runners are plain objects on this event loop, which still run real commands."""

from __future__ import annotations

import asyncio
from typing import Any

from runtime.site.controller import NodeMissing, WorkerSlot


class ActorGone(Exception):
    """Stands for Ray's ActorDiedError."""


class Handle:
    """`handle.method.remote(...)` as Ray has it."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self._calls: set[asyncio.Future[Any]] = set()
        self._is_gone = False

    def __getattr__(self, name: str) -> Any:
        return _Method(self, name)

    def call(self, name: str, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Begin a call."""
        if self._is_gone:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_exception(ActorGone("the actor is gone"))
            return future
        inner = asyncio.ensure_future(getattr(self.actor, name)(*arguments))
        outer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.add(outer)
        inner.add_done_callback(lambda done: outer.done() or outer.set_result(done.result()))
        outer.add_done_callback(self._calls.discard)
        return outer

    def die(self) -> None:
        """Die as by SIGKILL: calls fail, what the actor's guard watches is killed."""
        self._is_gone = True
        self.actor._guard.stdin.close()
        for call in list(self._calls):
            call.set_exception(ActorGone("the actor died"))


class _Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self._name = name

    def remote(self, *arguments: Any) -> asyncio.Future[Any]:
        return self._handle.call(self._name, arguments)


class LocalActors:
    """Implements `Actors`."""

    def __init__(self) -> None:
        self.handles: dict[str, Handle] = {}
        self.missing: set[str] = set()  # nodes without a raylet

    async def start(self, slot: WorkerSlot, actor_class: type, *args: object, **kwargs: object) -> Handle:
        """See `Actors.start`."""
        if slot.lease.node in self.missing:
            raise NodeMissing(f"no raylet on {slot.lease}")
        if slot.worker not in self.handles:
            self.handles[slot.worker] = Handle(actor_class(*args, **kwargs))
        return self.handles[slot.worker]

    async def stop(self, name: str) -> None:
        """See `Actors.stop`."""
        handle = self.handles.pop(name, None)
        if handle:
            handle.die()

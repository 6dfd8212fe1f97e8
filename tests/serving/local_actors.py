"""`Actors` without Ray: every actor is a process of this machine, reached through a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from runtime.site.controller import NodeMissing, WorkerSlot

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["runtime.serving.workers", "runtime.serving.gateway_worker"])


def _serve(pipe: Connection, actor_class: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    os.setpgid(0, 0)
    actor = actor_class(*args, **kwargs)
    lock = threading.Lock()

    def call(number: int, method: str, given: tuple[Any, ...]) -> None:
        try:
            answer = (number, True, getattr(actor, method)(*given))
        except Exception as error:
            answer = (number, False, error)
        with lock:
            pipe.send(answer)

    with ThreadPoolExecutor(4) as pool, contextlib.suppress(EOFError):
        while True:
            pool.submit(call, *pipe.recv())
    os._exit(0)


class LocalHandle:
    """Looks like a Ray handle: `handle.method.remote(...)` is awaitable. Dead actors raise `ConnectionError`."""

    def __init__(self, actor_class: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs, actor_class, args, kwargs), daemon=True)
        self.process.start()
        theirs.close()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._dead = False
        threading.Thread(target=self._read, daemon=True).start()

    def __getattr__(self, method: str) -> Any:
        return _Method(self, method)

    def call(self, method: str, args: tuple[Any, ...]) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._count += 1
        self._waiting[self._count] = future
        try:
            if self._dead:
                raise BrokenPipeError
            self._pipe.send((self._count, method, args))
        except OSError:
            self._end()
        return future

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._loop.call_soon_threadsafe(self._settle, *self._pipe.recv())
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end)

    def _settle(self, number: int, fine: bool, value: Any) -> None:
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result(value) if fine else future.set_exception(value)

    def _end(self) -> None:
        self._dead = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the actor died"))
        self._waiting.clear()


class _Method:
    def __init__(self, handle: LocalHandle, method: str) -> None:
        self._handle, self._method = handle, method

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        return self._handle.call(self._method, args)


class LocalActors:
    """Implements `runtime.site.controller.Actors`."""

    def __init__(self) -> None:
        self.handles: dict[str, LocalHandle] = {}
        self.missing_nodes: set[str] = set()
        self.started: list[str] = []

    async def start(self, slot: WorkerSlot, actor_class: type, *args: object, **kwargs: object) -> LocalHandle:
        if slot.lease.node in self.missing_nodes:
            raise NodeMissing(f"no raylet of {slot.lease}")
        return self._find_or_start(slot.worker, actor_class, args, kwargs)

    async def start_on_head(self, name: str, actor_class: type, *args: object, **kwargs: object) -> LocalHandle:
        return self._find_or_start(name, actor_class, args, kwargs)

    async def stop(self, name: str) -> None:
        self.kill(name)
        self.handles.pop(name, None)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to an actor's process."""
        handle = self.handles.get(name)
        if handle is not None and handle.process.is_alive():
            os.kill(handle.process.pid, number)
            if number == signal.SIGKILL:
                handle.process.join(10)

    def close(self) -> None:
        for name in list(self.handles):
            self.kill(name)

    def _find_or_start(self, name: str, actor_class: type, args: Any, kwargs: Any) -> LocalHandle:
        handle = self.handles.get(name)
        if handle is None or not handle.process.is_alive():
            self.started.append(name)
            handle = self.handles[name] = LocalHandle(actor_class, args, kwargs)
        return handle

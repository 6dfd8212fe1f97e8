"""One scheduler process: everything put together, started, and stopped again in the right order."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from sse_starlette.sse import AppStatus

from scheduler.clock import SystemClock
from scheduler.control_loop import ControlLoop
from scheduler.domain.reasons import Refused
from scheduler.inventory import Inventory
from scheduler.planning.plan import Replanner
from scheduler.rpc.agents import AgentService
from scheduler.rpc.auth import VIEWERS, Auth
from scheduler.rpc.causes import Causes
from scheduler.rpc.clients import ClientService
from scheduler.rpc.gate import Gate
from scheduler.rpc.log_feed import LogFeed
from scheduler.rpc.server import RpcServer, TlsFiles
from scheduler.rpc.sessions import Sessions
from scheduler.rpc.sites import SiteService
from scheduler.serve.addresses import Address, check_exposure, listen
from scheduler.serve.measured import MeasuredStore, measured_planner
from scheduler.serve.metrics import InventoryCollector
from scheduler.serve.web import PageServer, add_operations
from scheduler.status_page.app import create_app
from scheduler.store.failures import StoreFailed, shown
from scheduler.store.job_logs import JobLogs
from scheduler.store.sql_store import SqlStore
from scheduler.store.tokens import Tokens

_log = logging.getLogger(__name__)

STOP_GRACE_S = 1.0
"""How long calls may go on when the scheduler stops."""

RECENT_ROWS = 200
"""Newest rows of the stored log that the status page shows after a restart."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `serve` was told."""

    database: str
    listen: Address
    page: Address
    tls: TlsFiles | None = None
    ready_file: Path | None = None


def serve(options: Options) -> None:
    """Run until SIGTERM or SIGINT. Raises `Refused` or `StoreFailed` where it cannot start or go on."""
    for address in (options.listen, options.page):
        check_exposure(address, options.tls is not None)
    store = SqlStore(options.database)
    try:
        asyncio.run(_Process(options, store).run())
    finally:
        store.close()


class _Process:
    """The parts, wired. Lives within one event loop."""

    def __init__(self, options: Options, store: SqlStore) -> None:
        self._options = options
        self._database = store.database
        self._registry = CollectorRegistry()
        self._store = MeasuredStore(store, self._registry, self._taken_over)
        self._clock = SystemClock()
        self._tokens = Tokens(store.database)
        self._auth = Auth(self._tokens, self._clock)
        self._fault: BaseException | None = None
        self._running: list[asyncio.Task[None]] = []
        self._serving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Everything, until a signal or a fault."""
        self._event_loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._event_loop.add_signal_handler(number, self._stop.set)
        self._assemble()
        try:
            await self._start()
            await self._stop.wait()
            _log.info("stopping")
        finally:
            await self._shut_down()
        if self._fault is not None:
            raise self._fault

    async def _start(self) -> None:
        listener = listen(self._options.page)
        self._running += [self._run_beside(self._loop.run()), self._run_beside(self._logs.run())]
        port = await self._rpc.start(str(self._options.listen), self._options.tls)
        self._serving = self._run_beside(self._page.serve(sockets=[listener]))
        self._announce(self._options.listen.at(port), self._options.page.at(listener.getsockname()[1]))

    async def _shut_down(self) -> None:
        """Outer parts first: nobody is answered by a loop that has stopped."""
        if self._serving is not None:
            await self._close_pages(self._serving)
        self._sessions.agents.end_all()
        self._sessions.sites.end_all()
        await self._rpc.stop(STOP_GRACE_S)
        for part in self._running:
            await cancelled(part)
        try:
            await self._logs.flush()
        except StoreFailed as failed:
            _log.error("the newest lines of job logs are lost: %s", failed)

    async def _close_pages(self, serving: asyncio.Task[None]) -> None:
        AppStatus.should_exit = True  # or open pages would hold the server up until its time-out
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # pages cut off now are no errors
        self._page.should_exit = True
        await asyncio.wait([serving])

    def _run_beside(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A part that should run until the process stops; if it ends by itself, the process stops."""
        task = asyncio.create_task(part)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._fault = self._fault or task.exception()
        self._stop.set()

    def _assemble(self) -> None:
        clock, causes, sessions = self._clock, Causes(), Sessions()
        inventory = Inventory.restore(self._store.load())
        self._loop = ControlLoop(inventory, self._store, sessions, clock, measured_planner(Replanner(), self._registry))
        self._logs = LogFeed(JobLogs(self._database), clock)
        self._sessions, gate = sessions, Gate(self._auth)
        self._rpc = RpcServer(
            AgentService(self._loop, sessions, clock, causes),
            SiteService(self._loop, sessions, self._logs, clock, causes),
            ClientService(self._loop, self._store, self._tokens, self._auth, self._logs, clock, causes),
            gate,
        )
        self._registry.register(InventoryCollector(self._loop, gate, self._logs, self._store.events))
        page = create_app(self._loop, self._may_view, clock, self._store.log_tail(RECENT_ROWS))
        self._page = PageServer(add_operations(page, self._registry, self._may_view), self._options.tls)

    def _may_view(self, token: str | None, is_local: bool) -> bool:
        """Whoever is on this machine, or brings the token of someone who may read."""
        if is_local and not token:
            return True
        try:
            found = self._auth.find(token or "")
        except StoreFailed as failed:
            _log.error("cannot look up a token: %s", failed)
            return False
        return found is not None and found.role in VIEWERS

    def _taken_over(self, refused: Refused) -> None:
        """Called on the store's thread."""
        self._fault = refused
        self._event_loop.call_soon_threadsafe(self._stop.set)

    def _announce(self, listen: Address, page: Address) -> None:
        scheme = "https" if self._options.tls else "http"
        ready = {"address": str(listen), "page": f"{scheme}://{page}", "pid": os.getpid()}
        _log.info("serving on %s, status page at %s, database %s", listen, ready["page"], shown(self._options.database))
        if not self._tokens.list(self._clock.now_s()):
            _log.info("no token exists yet: make one with `fallow scheduler token create --role admin --name NAME`")
        if self._options.ready_file is not None:
            unfinished = self._options.ready_file.with_name(self._options.ready_file.name + ".new")
            unfinished.write_text(json.dumps(ready))
            unfinished.replace(self._options.ready_file)


async def cancelled(task: asyncio.Task[None]) -> None:
    """Returns once the task has ended. Asks again: before Python 3.12, `wait_for` may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)

"""One job at this site: its controller, and the calls that wait for it. A job's trouble stays its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from runtime.site.controller import Assignment, JobController, LeaseKey, Reports

log = logging.getLogger(__name__)


class HostedJob:
    """Calls the controller one call at a time, in order, without ever making another job wait."""

    def __init__(self, job: str, controller: JobController, reports: Reports) -> None:
        self.job = job
        self.revision = -1
        self._controller = controller
        self._reports = reports
        self._calls: asyncio.Queue[Callable[[], Awaitable[None]] | None] = asyncio.Queue()
        self._worker = asyncio.create_task(self._run(), name=f"job {job}")

    def assign(self, assignment: Assignment) -> None:
        """Pass a newer assignment on; one that is not newer has no effect."""
        if assignment.revision <= self.revision:
            return
        self.revision = assignment.revision
        self._calls.put_nowait(lambda: self._assign(assignment))

    def node_gone(self, lease: LeaseKey) -> None:
        """Pass the loss of a node on."""
        self._calls.put_nowait(lambda: self._controller.node_gone(lease))

    def end(self, cause: str) -> None:
        """Have the controller end the job."""
        self._calls.put_nowait(lambda: self._end(cause))

    def finish(self) -> None:
        """The job has ended: make no calls after those that wait."""
        self._calls.put_nowait(None)

    async def detach(self) -> None:
        """Let go of the job; its actors go on."""
        self._worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._worker
        await self._controller.detach()

    async def _run(self) -> None:
        while call := await self._calls.get():
            try:
                await call()
            except Exception:
                log.exception("job %s: its controller failed at a call", self.job)

    async def _assign(self, assignment: Assignment) -> None:
        try:
            await self._controller.assign(assignment)
        except Exception as error:
            log.exception("job %s: revision %d failed", self.job, assignment.revision)
            self._reports.refused(
                assignment, "site_error", f"the site failed at it: {error!r}", "see the site's log for the whole story"
            )

    async def _end(self, cause: str) -> None:
        try:
            await self._controller.end(cause)
        except Exception as error:
            log.exception("job %s: ending it failed", self.job)
            self._reports.ended(self.job, "failed", f"ending it ({cause}) failed: {error!r}")

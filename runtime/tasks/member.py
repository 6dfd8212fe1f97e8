"""One runner of a task job, from its start to its end, as the controller drives it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from runtime.site.controller import Actors, Reports, WorkerSlot
from runtime.tasks.board import Board, Try
from runtime.tasks.runner import Runner

log = logging.getLogger(__name__)

LEAVE_S = 10.0
"""What a running item gets to end when the runner must leave and nobody said by when."""

MARGIN_S = 3.0
MARGIN_SHARE = 0.25
"""A runner is gone this much before the deadline: three seconds, or a quarter of the time where that is less."""

LOG_POLL_S = 1.0
DISK_RETRY_S = 5.0


class Member:
    """Starts the runner, feeds it items while it may, and says what became of it. `over` is set when it is gone."""

    def __init__(
        self,
        job: str,
        slot: WorkerSlot,
        board: Board,
        actors: Actors,
        reports: Reports,
        width: Callable[[], int],
        may_take: Callable[[], bool],
    ) -> None:
        self.slot = slot
        self.is_up = asyncio.Event()
        self.start_error = ""
        self.was_lost = False
        self._job = job
        self._board = board
        self._actors = actors
        self._reports = reports
        self._width = width
        self._may_take = may_take
        self._leaving = False
        self._timer: asyncio.TimerHandle | None = None
        self._run_began_s = 0.0
        self._stop_cause = ""
        self._ends_with_job = False
        self.over = asyncio.Event()
        self._is_let_go = False
        self._task = asyncio.create_task(self._live(), name=f"{job}: {slot.worker}")
        self._closing = asyncio.create_task(self._close(), name=f"{job}: the end of {slot.worker}")

    @property
    def is_leaving(self) -> bool:
        """Whether it takes no further items."""
        return self._leaving

    def leave(self, cause: str, deadline_s: float | None) -> None:
        """Take no further item; the one that runs gets until shortly before the deadline (Unix time)."""
        left_s = LEAVE_S if deadline_s is None else deadline_s - time.time()
        patience_s = max(0.0, left_s - min(MARGIN_S, MARGIN_SHARE * left_s))
        self._leaving = True
        self._board.changed.set()
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(patience_s, self.stop, cause)

    def stop(self, cause: str) -> None:
        """End it now; what it is at waits again."""
        self._stop_cause = self._stop_cause or cause
        self._task.cancel()

    def finish(self, cause: str) -> None:
        """End it with its job. It does not say that it left: a worker that leaves a live job would be replaced."""
        self._ends_with_job = True
        self.stop(cause)

    def lose(self, cause: str) -> None:
        """Its node is gone."""
        self.was_lost = True
        self.stop(cause)

    async def let_go(self) -> None:
        """Forget the runner, which goes on."""
        self._is_let_go = True
        self._task.cancel()
        await asyncio.wait((self._closing,))

    async def _live(self) -> None:
        self._reports.worker(self._job, self.slot, "starting")
        runner = await self._start()
        if runner is not None:
            await self._feed(runner)

    async def _close(self) -> None:
        """Comes after `_live` however that ends, even if it was cancelled before it began."""
        await asyncio.wait((self._task,))
        if self._is_let_go:
            return
        if not self._task.cancelled() and (error := self._task.exception()):  # Ray's: the runner or its node died
            log.warning("job %s: %s is lost: %s", self._job, self.slot.worker, _first_line(error))
            self._stop_cause, self.was_lost = _first_line(error), True
        await self._end()

    async def _start(self) -> Any | None:
        try:
            runner = await self._actors.start(self.slot, Runner, self.slot.worker, self._board.work)
        except Exception as error:
            self.start_error = f"{self.slot.worker} cannot start on {self.slot.lease}: {_first_line(error)}"
            self.was_lost = True
            return None
        self._reports.worker(self._job, self.slot, "running")
        self.is_up.set()
        self._board.changed.set()
        return runner

    async def _feed(self, runner: Any) -> None:
        at = await runner.at.remote()
        run = self._board.adopt(self.slot.worker, *at) if at else None
        while not self._leaving or run:
            if run is None and self._may_take():
                run = self._board.take(self.slot.worker)
            if run is None:
                await _until_set(self._board.changed)
            else:
                await self._run(runner, run)
                run = None

    async def _run(self, runner: Any, run: Try) -> None:
        self._run_began_s = time.monotonic()
        listening = asyncio.create_task(self._listen(runner))
        try:
            outcome = await runner.run.remote(run.item, run.attempt, run.parameters)
            await self._say_lines(runner)
        finally:
            listening.cancel()
        while True:
            try:
                await self._board.take_in(self.slot, run, outcome)
                return
            except OSError as error:
                text = f"item {run.item} is done but cannot be kept ({error}): waiting for space"
                self._reports.log(self._job, self.slot.worker, [text])
                await asyncio.sleep(DISK_RETRY_S)

    async def _listen(self, runner: Any) -> None:
        while True:
            await asyncio.sleep(LOG_POLL_S)
            await self._say_lines(runner)

    async def _say_lines(self, runner: Any) -> None:
        lines = await runner.take_lines.remote()
        if lines:
            self._reports.log(self._job, self.slot.worker, lines)

    async def _end(self) -> None:
        """Make sure that it is gone, then say so."""
        if self._timer:
            self._timer.cancel()
        item = self._board.give_back(self.slot.worker)
        cause = self._stop_cause or self.start_error
        if item is not None:
            seconds = (time.monotonic() - self._run_began_s) / max(1, self._width())
            self._reports.work_lost(self._job, 0, seconds, f"item {item} starts again: {cause}")
        try:
            await self._actors.stop(self.slot.worker)
        except Exception as error:
            log.warning("job %s: stopping %s failed: %s", self._job, self.slot.worker, _first_line(error))
        if not self._ends_with_job:
            self._reports.worker(self._job, self.slot, "lost" if self.was_lost else "left", cause)
        self.over.set()


async def _until_set(event: asyncio.Event) -> None:
    """Wait for the next change; every waiter wakes."""
    event.clear()
    await event.wait()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:500]

"""Lines that jobs write, on their way from sites to the store and from there to whoever reads or follows them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from scheduler.clock import Clock
from scheduler.store.failures import StoreFailed
from scheduler.store.job_logs import JobLogs, LogLine

_log = logging.getLogger(__name__)

LINGER_S = 0.2
"""Lines are gathered for so long before they are written: one transaction for many."""
MOST_WAITING = 100_000
"""Lines that wait for a slow database; the oldest are dropped after that."""
PAGE = 1_000


class LogFeed:
    """`append` returns at once; `run` writes on a thread; readers see what was written."""

    def __init__(self, logs: JobLogs, clock: Clock, linger_s: float = LINGER_S) -> None:
        self._logs = logs
        self._clock = clock
        self._linger_s = linger_s
        self._waiting: deque[LogLine] = deque()
        self._some = asyncio.Event()
        self._written = asyncio.Condition()
        self._writing = asyncio.Lock()
        self.dropped = 0

    def append(self, job: str, worker: str, lines: Iterable[str]) -> None:
        """Take lines in; they get the time of now."""
        at_s = self._clock.now_s()
        self._waiting.extend(LogLine(job, worker[:200], at_s, line) for line in lines)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._some.set()

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            await self._some.wait()
            await asyncio.sleep(self._linger_s)
            try:
                await self.flush()
            except StoreFailed as failed:
                _log.error("job logs wait: %s", failed)

    async def flush(self) -> None:
        """Write what waits now. Raises `StoreFailed`, and then keeps it."""
        async with self._writing:
            batch = tuple(self._waiting)
            self._waiting.clear()
            self._some.clear()
            try:
                if batch:
                    await asyncio.to_thread(self._logs.append, batch)
            except StoreFailed:
                self._waiting.extendleft(reversed(batch))
                self._some.set()
                raise
        async with self._written:
            self._written.notify_all()

    async def read(self, job: str, tail: int, goes_on: Callable[[], bool]) -> AsyncIterator[LogLine]:
        """The job's last `tail` lines (0: all that were kept), then new ones for as long as `goes_on()`."""
        newest = max(await asyncio.to_thread(self._logs.newest, job) - tail, 0) if tail else 0
        while True:
            last_round = not goes_on()
            if last_round:
                await self.flush()
            lines = await asyncio.to_thread(self._logs.after, job, newest, PAGE)
            for line in lines:
                yield line
                newest = line.sequence
            if len(lines) == PAGE:
                continue
            if last_round:
                return
            await self._new_lines()

    async def _new_lines(self) -> None:
        """Returns when lines were written, and now and then without, to see whether the job still goes on."""
        try:
            async with asyncio.timeout(1.0), self._written:
                await self._written.wait()
        except TimeoutError:
            pass

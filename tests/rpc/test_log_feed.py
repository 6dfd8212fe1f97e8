"""Job logs on their way: batched, in order, kept through a failing database, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from scheduler.clock import ManualClock
from scheduler.domain.reasons import Reason
from scheduler.rpc import log_feed
from scheduler.rpc.log_feed import LogFeed
from scheduler.store.failures import StoreFailed
from scheduler.store.job_logs import JobLogs, LogLine


class FakeLogs(JobLogs):
    """Keeps lines in memory; fails on demand."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.lines: list[LogLine] = []
        self.broken = False

    def append(self, lines: Sequence[LogLine]) -> None:
        if self.broken:
            raise StoreFailed(Reason("disk_full", "The disk is full.", "Free some space."))
        self.batches.append([line.line for line in lines])
        for line in lines:
            self.lines.append(LogLine(line.job, line.worker, line.at_s, line.line, len(self.lines) + 1))

    def after(self, job: str, sequence: int, limit: int) -> tuple[LogLine, ...]:
        return tuple(line for line in self.lines if line.job == job and line.sequence > sequence)[:limit]

    def newest(self, job: str) -> int:
        return len(self.lines)


async def collect(feed: LogFeed, tail: int = 0) -> list[str]:
    return [line.line async for line in feed.read("j", tail, lambda: False)]


async def test_lines_are_written_in_batches_and_in_order() -> None:
    logs = FakeLogs()
    feed = LogFeed(logs, ManualClock(5.0), linger_s=0.05)
    running = asyncio.create_task(feed.run())
    for number in range(10):
        feed.append("j", "w", [str(number)])
    assert await collect(feed) == [str(number) for number in range(10)]
    assert await collect(feed, tail=2) == ["8", "9"]
    assert len(logs.batches) == 1
    assert logs.lines[0].at_s == 5.0
    running.cancel()


async def test_more_than_a_page_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_feed, "PAGE", 3)
    feed = LogFeed(FakeLogs(), ManualClock())
    feed.append("j", "w", [str(number) for number in range(9)])
    assert await collect(feed) == [str(number) for number in range(9)]


async def test_nothing_is_lost_while_the_database_fails() -> None:
    logs = FakeLogs()
    feed = LogFeed(logs, ManualClock())
    logs.broken = True
    feed.append("j", "w", ["1", "2"])
    with pytest.raises(StoreFailed):
        await feed.flush()
    feed.append("j", "w", ["3"])
    logs.broken = False
    assert await collect(feed) == ["1", "2", "3"]


async def test_a_database_that_stays_slow_costs_the_oldest_lines_not_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_feed, "MOST_WAITING", 3)
    feed = LogFeed(FakeLogs(), ManualClock())
    feed.append("j", "w", ["1", "2", "3", "4", "5"])
    assert feed.dropped == 2
    assert await collect(feed) == ["3", "4", "5"]

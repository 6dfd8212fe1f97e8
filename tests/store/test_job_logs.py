"""What jobs write is kept in order, the newest lines of each."""

from __future__ import annotations

import pytest

from scheduler.store.job_logs import JobLogs, LogLine
from scheduler.store.sql_store import SqlStore


def lines(job: str, *texts: str) -> list[LogLine]:
    return [LogLine(job, "w1", 1.5, text) for text in texts]


def texts(logs: JobLogs, job: str, after: int = 0, limit: int = 100) -> list[str]:
    return [line.line for line in logs.after(job, after, limit)]


def test_lines_come_back_in_order_by_job(store: SqlStore) -> None:
    logs = JobLogs(store.database)
    logs.append([*lines("a", "1", "2"), *lines("b", "x"), *lines("a", "3")])
    assert texts(logs, "a") == ["1", "2", "3"]
    assert texts(logs, "a", after=1, limit=1) == ["2"]
    assert texts(logs, "b") == ["x"]
    assert (logs.newest("a"), logs.newest("b"), logs.newest("c")) == (3, 1, 0)
    assert logs.after("a", 0, 1) == (LogLine("a", "w1", 1.5, "1", 1),)


def test_numbers_go_on_after_a_restart(store: SqlStore) -> None:
    JobLogs(store.database).append(lines("a", "1"))
    later = JobLogs(store.database)
    later.append(lines("a", "2"))
    assert texts(later, "a", after=1) == ["2"]


def test_the_newest_lines_of_each_job_are_kept(store: SqlStore) -> None:
    logs = JobLogs(store.database, lines_kept=3)
    logs.append([*lines("a", *"12345"), *lines("b", "x")])
    assert texts(logs, "a") == ["3", "4", "5"]
    assert texts(logs, "b") == ["x"]


@pytest.mark.parametrize(
    ("given", "kept"), [("a\0b", "a\ufffdb"), ("x" * 9000, "x" * 8192 + " [cut]"), ("日本", "日本")]
)
def test_any_line_can_be_kept(store: SqlStore, given: str, kept: str) -> None:
    logs = JobLogs(store.database)
    logs.append(lines("a", given))
    assert texts(logs, "a") == [kept]

"""What jobs write, line by line; the newest lines of each job are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from scheduler.store import schema
from scheduler.store.database import Database
from scheduler.store.sql_store import without_nul

LINES_KEPT = 100_000
"""Lines kept of one job."""
LINE_CHARACTERS = 8_192
"""A longer line is cut there."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a worker of a job wrote. `sequence` counts a job's lines from 1; 0 for a line not kept yet."""

    job: str
    worker: str
    at_s: float
    line: str
    sequence: int = 0


class JobLogs:
    """Blocking; raises `StoreFailed`. One process writes, any number read."""

    def __init__(self, database: Database, lines_kept: int = LINES_KEPT) -> None:
        self._database = database
        self._lines_kept = lines_kept
        self._last: Counter[str] = Counter()

    def append(self, lines: Sequence[LogLine]) -> None:
        """Keep a batch of lines, in order, in one transaction."""
        last = Counter(self._last)
        with self._database.writing() as connection:
            for job in {line.job for line in lines} - last.keys():
                last[job] = _newest(connection, job)
            self._database.add(connection, schema.log_lines, [_row(line, last) for line in lines])
            for job in {line.job for line in lines}:
                self._prune(connection, job, last[job])
        self._last = last

    def after(self, job: str, sequence: int, limit: int) -> tuple[LogLine, ...]:
        """Lines of a job after the one numbered `sequence`, oldest first."""
        line = schema.log_lines.c
        query = (
            select(line.job, line.worker, line.at_s, line.line, line.sequence)
            .where(line.job == job, line.sequence > sequence)
            .order_by(line.sequence)
            .limit(limit)
        )
        with self._database.reading() as connection:
            return tuple(LogLine(*row) for row in connection.execute(query))

    def newest(self, job: str) -> int:
        """Number of the job's last line; 0 without any."""
        with self._database.reading() as connection:
            return _newest(connection, job)

    def _prune(self, connection: Connection, job: str, newest: int) -> None:
        line = schema.log_lines.c
        connection.execute(delete(schema.log_lines).where(line.job == job, line.sequence <= newest - self._lines_kept))


def _newest(connection: Connection, job: str) -> int:
    line = schema.log_lines.c
    return connection.scalar(select(func.max(line.sequence)).where(line.job == job)) or 0


def _row(line: LogLine, last: Counter[str]) -> dict[str, object]:
    last[line.job] += 1
    text = line.line if len(line.line) <= LINE_CHARACTERS else line.line[:LINE_CHARACTERS] + " [cut]"
    return {
        "job": line.job,
        "sequence": last[line.job],
        "at_s": line.at_s,
        "worker": line.worker,
        "line": without_nul(text),
    }

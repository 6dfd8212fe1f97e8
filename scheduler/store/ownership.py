"""Makes sure that one database has one scheduler.

A lock keeps a second scheduler out and vanishes with its holder, however that dies: a file lock beside an SQLite
database, a session's advisory lock in PostgreSQL. A PostgreSQL session can also break while its scheduler lives on;
so every owner has a number as well, and each of its transactions first checks that no later owner has come.
"""

from __future__ import annotations

import fcntl
import os

from sqlalchemy import Connection, select, text

from scheduler.domain.reasons import Reason, Refused
from scheduler.store import schema
from scheduler.store.database import Database
from scheduler.store.failures import shown, speaking_plainly

_OWNER_LOCK = 0x66616C6C6F78


class Ownership:
    """Held by the scheduler that may write. Raises `Refused` where another one holds it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._file: int | None = None
        self._session: Connection | None = None
        if database.is_sqlite:
            self._lock_file()
        else:
            self._lock_session()
        self.number = self._next_number()

    def check(self, connection: Connection) -> None:
        """Raises `Refused` if a later scheduler has taken the database over. Holds for the whole transaction."""
        number = schema.numbers.c
        newest = connection.scalar(select(number.value).where(number.name == "owner").with_for_update())
        if newest != self.number:
            raise Refused(
                Reason(
                    "database_taken_over",
                    f"Another scheduler has taken over the database {shown(self._database.url)}.",
                    "Stop one of the two: agents, sites and clients must all speak to the same one.",
                )
            )

    def release(self) -> None:
        """Let the next scheduler in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._session is not None:
            self._session.invalidate()  # ends the session, and with it the lock
            self._session.close()
            self._session = None

    def _lock_file(self) -> None:
        path = self._database.path.with_name(self._database.path.name + ".lock")
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _in_use(self._database.url) from None
        self._file = descriptor

    def _lock_session(self) -> None:
        with speaking_plainly(self._database.url):
            session = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if not session.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _OWNER_LOCK}):
                session.close()
                raise _in_use(self._database.url)
        self._session = session

    def _next_number(self) -> int:
        number = schema.numbers.c
        with self._database.writing() as connection:
            newest = connection.scalar(select(number.value).where(number.name == "owner").with_for_update()) or 0
            self._database.put(connection, schema.numbers, [{"name": "owner", "value": newest + 1}])
        return newest + 1


def _in_use(url: str) -> Refused:
    return Refused(
        Reason(
            "database_in_use",
            f"Another scheduler is running on the database {shown(url)}.",
            "Stop it first, or name another database with --db.",
        )
    )

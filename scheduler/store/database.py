"""One SQL database: how it is opened, and how transactions on it are made durable and exclusive."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from scheduler.domain.reasons import Reason, Refused
from scheduler.store.failures import speaking_plainly

BUSY_TIMEOUT_S = 10.0
"""How long a writer waits for another one before it says that the database is locked."""


class Database:
    """An engine for `sqlite:///path` or `postgresql+psycopg://...`; raises `Refused` for any other URL.

    SQLite runs in WAL mode with synchronous=FULL: a commit has reached the disk when it returns. Writers take the
    write lock when they begin, so that none fails half-way because another one was faster.
    """

    def __init__(self, url: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.url = url
        self.parsed = _parsed(url)
        self.engine = self._sqlite(busy_timeout_s) if self.is_sqlite else self._postgresql(busy_timeout_s)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file of this machine."""
        return self.parsed.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path:
        """The file of an SQLite database."""
        return Path(self.parsed.database or "")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in a transaction that only reads. Raises `StoreFailed`."""
        with speaking_plainly(self.url), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that is kept whole at the end, or not at all. Raises `StoreFailed`."""
        with speaking_plainly(self.url), self.engine.connect() as connection:
            connection = connection.execution_options(fallow_writes=True)
            with connection.begin():
                yield connection

    def put(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], keep: str = "") -> None:
        """Insert rows, or overwrite those with the same primary key, save for the column `keep`."""
        if not rows:
            return
        if self.is_sqlite:
            statement: Any = sqlite.insert(table)
        else:
            statement = postgresql.insert(table)
        keys = [column.name for column in table.primary_key]
        new = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in (*keys, keep)}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=new), list(rows))

    def add(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows that are new."""
        if rows:
            connection.execute(insert(table), list(rows))

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def _sqlite(self, busy_timeout_s: float) -> Engine:
        _make_private(self.path)
        engine = create_engine(self.parsed, connect_args={"timeout": busy_timeout_s})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _postgresql(self, busy_timeout_s: float) -> Engine:
        options = f"-c lock_timeout={int(busy_timeout_s * 1000)} -c client_encoding=utf8"
        return create_engine(
            self.parsed, pool_pre_ping=True, pool_size=4, connect_args={"options": options, "connect_timeout": 10}
        )


def _parsed(url: str) -> URL:
    remedy = "Write sqlite:///path/to/fallow.db or postgresql+psycopg://user@host/database."
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise Refused(Reason("invalid_database_url", "--db is not a database URL.", remedy)) from None
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername != "sqlite" or not parsed.database or parsed.database == ":memory:":
        what = f"--db names {parsed.render_as_string(hide_password=True)!r}, which Fallow cannot keep its state in."
        raise Refused(Reason("invalid_database_url", what, remedy))
    return parsed


def _make_private(path: Path) -> None:
    """Create the file so that only its owner can read it: specs may hold secrets of users."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        what = f"The database file {path} cannot be opened: {error.strerror}."
        remedy = "Create its folder and make it writable for this user, or name another place with --db."
        raise Refused(Reason("database_missing", what, remedy)) from error


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, not where the driver guesses
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("fallow_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
